"""Stage `report`: the run folder's results, traces and gallery as one HTML page, a markdown table and CSV."""

from dataclasses import dataclass
from pathlib import Path

from xmsd_jax.config import ConfigError
from xmsd_jax.report.gallery import read_gallery, read_traces
from xmsd_jax.report.imposed_map import imposed_markdown
from xmsd_jax.report.page import page
from xmsd_jax.report.summary import summarise
from xmsd_jax.report.tables import csv_text, markdown
from xmsd_jax.runs import read_results, write_text


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What the report shows.

    Attributes:
        title: of the page.
        source: folder of the run that is reported; None is the run folder itself, where the report is written.
        cards: at most so many answers in the gallery.
    """

    title: str = "Answers about video, guessed ahead, decided by the target"
    source: Path | None = None
    cards: int = 24

    def __post_init__(self) -> None:
        """Refuse a negative number of cards."""
        if self.cards < 0:
            raise ConfigError(f"cards must be 0 or more, got {self.cards}; 0 leaves the gallery out")


def run(config: ReportConfig, run_dir: Path, fresh: bool = False) -> Path:
    """Write report.html, report.md and report.csv into `run_dir`, print the table; returns the page's path.

    The report is always made anew, it takes no time: `fresh` changes nothing.

    Raises:
        UserError: results, traces or gallery are missing or damaged, or a speed-up names no baseline.
    """
    source = config.source or Path(run_dir)
    rows, provenance = read_results(source)
    summary = summarise(rows)
    html = page(
        title=config.title,
        summary=summary,
        provenance=provenance,
        traces=read_traces(source),
        cards=read_gallery(source)[: config.cards],
        run_dir=source,
    )
    table = "\n".join(part for part in (markdown(summary), imposed_markdown(rows)) if part)
    target = Path(run_dir) / "report.html"
    write_text(target.with_suffix(".csv"), csv_text(rows))
    write_text(target.with_suffix(".md"), table)
    write_text(target, html)
    print(table)
    print(f"report: {target}", flush=True)
    return target
