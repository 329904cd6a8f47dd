"""Stage `proxy`: what drafts should be worth, from measured parts and stored answers; nothing is decoded.

With `original` it prints the original study's six rows from its own constants instead, kind "original".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xmsd_jax.config import ConfigError, UserError, dump
from xmsd_jax.data.store import Store
from xmsd_jax.decoding.proxy import TwoPhase
from xmsd_jax.pipeline.expected import expect
from xmsd_jax.pipeline.judged import read_judged
from xmsd_jax.pipeline.predicted import (
    auto_row,
    by_gamma,
    gamma_row,
    part_rows,
    predicted_parts,
    read_baseline,
    read_costs,
)
from xmsd_jax.pipeline.rows import DraftRow
from xmsd_jax.runs import Row, Run, provenance, write_results

STUDY_BASELINE = "the study's target alone"


@dataclass(frozen=True, kw_only=True)
class ProxyConfig:
    """What is predicted from what.

    original: the study's constants and rows; nothing else is read then. Else: costs: the costs.json of a benchmark on
    this machine; clips: the clip set of it; evaluation: of `xmsd evaluate`; store: the folder of stores, with `split`;
    rows: to predict, each of them measured in `costs`; gamma: of rows that name none.
    """

    original: TwoPhase | None = None
    costs: Path | None = None
    clips: str = ""
    evaluation: Path | None = None
    store: Path | None = None
    split: str = "test"
    rows: tuple[DraftRow, ...] = ()
    gamma: int = 8

    def __post_init__(self) -> None:
        """Raise ConfigError unless either the study's constants or all of our inputs are given."""
        ours = (self.costs, self.evaluation, self.store, self.rows)
        if (self.original is None) == (not all(ours)):
            raise ConfigError("proxy: give either original, or all of costs, evaluation, store and rows")
        if self.gamma < 1:
            raise ConfigError(f"gamma: must be at least 1, got {self.gamma}")


def run(config: ProxyConfig, run_dir: Path, fresh: bool = False) -> list[Row]:
    """Predict (seconds, so always anew), print the table, write results.json."""
    run = Run.open(run_dir, config)
    rows = original_rows(config.original) if config.original is not None else measured_rows(config)
    write_results(run.path, rows, provenance() | {"config": dump(config)})
    print(table(rows))
    print(f"results: {run.path}/results.json", flush=True)
    return rows


def original_rows(study: TwoPhase) -> list[Row]:
    """The study's speed-ups, from its own model: not measured, not ours."""
    return [
        Row(
            row=row.name,
            metric="speedup",
            value=study.speedup(row),
            unit="x",
            baseline=STUDY_BASELINE,
            kind="original",
            settings={"free": row.free, "alpha": row.alpha, "max_new_tokens": study.tokens},
        )
        for row in study.rows
    ]


def measured_rows(config: ProxyConfig) -> list[Row]:
    """Speed-up over gamma and milliseconds by part, on all stored answers of the split."""
    if config.costs is None or config.evaluation is None or config.store is None:
        raise ConfigError("proxy: costs, evaluation and store are needed")
    sets, store = read_costs(config.costs), Store.open(config.store / config.split)
    if config.clips not in sets:
        raise UserError(f"{config.costs}: has no clip set {config.clips!r}; it has {', '.join(sets)}: set clips")
    plain = read_baseline(config.costs)
    judged = read_judged(config.evaluation, config.split, store.manifest)
    names = store.names["sequences"]
    sequences = [names[number] for number in store.read("sequence")]
    lengths = {which: store.read(f"{which}_len") for which in ("target", "drafter")}
    shared, rows = {"clips": config.clips, "answers": store.rows}, []
    for row in config.rows:
        if row.name not in sets[config.clips]:
            raise UserError(f"{config.costs}: {row.name} was not measured; run the benchmark with that row")
        for name in (row.drafter, row.first):
            if name is not None and name not in judged:
                raise UserError(f"{config.evaluation}: {name} was not judged; evaluate it, or leave {row.name} out")
        parts = sets[config.clips][row.name]
        expected = expect(
            row,
            row.longest(config.gamma),
            judged,
            target_len=lengths["target"],
            drafter_len=lengths["drafter"],
            known=[True] * store.rows,
            parts=parts,
        )
        rows += part_rows(row.name, predicted_parts(parts, expected), kind="predicted", settings=shared)
        choice = by_gamma(parts, expected, sequences)
        rows += [] if choice is None else [gamma_row(row, choice, shared, plain)]
        rows += [auto_row(parts, expected, sequences, shared, plain)] if row.auto else []
    return rows


def table(rows: Sequence[Row]) -> str:
    """The speed-ups, one line a row."""
    lines = []
    for row in rows:
        spread = "" if row.low is None else f" ({row.low:.2f} to {row.high:.2f})"
        if row.metric == "speedup" and row.kind == "original":
            lines.append(f"{row.row:28} {row.value:.2f}x (original study's own model, against {row.baseline})")
        elif row.metric == "speedup":
            lines.append(f"{row.row:28} gamma chosen: {row.value:.2f}x{spread} predicted against {row.baseline}")
        if row.metric == "speedup_by_gamma":
            curve = " ".join(f"{value:.2f}" for value in row.settings["values"])
            best = f"best gamma {row.settings['best']}: {row.value:.2f}x{spread}"
            lines.append(f"{row.row:28} {best} predicted against {row.baseline}; gamma 0.. {curve}")
    return "\n".join(lines)
