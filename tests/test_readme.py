"""The README's tables are the committed results, and what it points to is there."""

import re
from pathlib import Path

import pytest

from xmsd_jax.runs import Row, read_results

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COLUMNS = ("iterations", "tau", "n_free", "prefill_ms", "decode_ms", "speedup", "decode_speedup")
TABLES = (
    ("demo_cpu", "held-out street scenes", 20),
    ("demo_cpu", "real DAVIS346 recording", 20),
    ("study_cpu", "held-out street scenes", 22),
)


def told(row: Row | None, metric: str) -> str:
    """A number as the README writes it."""
    if row is None or row.value is None:
        return "\u2013"
    if "speedup" not in metric:
        return f"{row.value:.{({'tau': 2, 'decode_ms': 0}).get(metric, 1)}f}"
    if row.row == row.baseline:
        return "1 (baseline)"
    between = "" if row.low is None else f" ({row.low:.2f} to {row.high:.2f})"
    return f"{row.value:.2f}x{between}"


def lines(folder: str, clips: str) -> list[list[str]]:
    rows, _ = read_results(ROOT / "results" / folder)
    own = {(r.row, r.metric): r for r in rows if r.settings.get("clips") == clips and r.kind == "measured"}
    names = [name for name in dict.fromkeys(name for name, _ in own) if (name, "speedup") in own]
    return [[name, *(told(own.get((name, metric)), metric) for metric in COLUMNS)] for name in names]


@pytest.mark.parametrize("which", range(len(TABLES)), ids=[f"{folder}, {clips}" for folder, clips, _ in TABLES])
def test_the_tables_are_the_committed_results(which):
    folder, clips, count = TABLES[which]
    tables = re.findall(r"\| row \| passes .*\n\|---.*\n((?:\|.*\n)+)", README)
    found = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in tables[which].splitlines()]
    assert found == lines(folder, clips)
    assert len(found) == count
    assert len(tables) == len(TABLES)


@pytest.mark.parametrize("folder", ["demo_cpu", "study_cpu", "leakage_cpu", "recorded_answers"])
def test_the_results_come_from_a_clean_checkout(folder):
    _, provenance = read_results(ROOT / "results" / folder)
    assert provenance["git"]["dirty"] is False


def test_the_speed_of_training_is_that_of_the_committed_results():
    rows, _ = read_results(ROOT / "results" / "train_h100")
    own = {(r.row, r.metric): r for r in rows}
    table = re.search(r"\| adapter \| ms a step .*\n\|---.*\n((?:\|.*\n)+)", README)
    assert table is not None
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]
    assert [line[0] for line in found] == ["L1", "L2", "L3", "L4", "L5", "B1", "L5F"]
    for kind, *cells in found:
        ratio = own[kind, "speedup"]
        assert cells == [
            f"{own[kind, 'step_ms'].value:.3f}",
            f"{own[kind, 'torch_step_ms'].value:.3f}",
            f"{ratio.value:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})",
            f"{own[kind, 'mfu'].value:.0%}",
            f"{own[kind, 'epoch_answers_per_second'].value:,.0f}",
        ]
    by_hand = {
        f"{own['all adapters', 'study_minutes'].value:.1f} min": "seven adapters x 50 epochs",
        f"{own['L5F', 'stream_share_later'].value * 100:.0f} % (first": "stream epoch",
        f"{own['L5F', 'stream_host_gb'].value:.1f} GB": "stream epoch",
        f"{own['B1', 'mfu'].value * 100:.0f} %, {own['L5F', 'mfu'].value * 100:.0f} %": "MFU",
    }
    for figure, line in by_hand.items():
        assert any(line in text and figure in text for text in README.splitlines()), figure


def test_links_lead_to_files():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / link).exists()] == []
