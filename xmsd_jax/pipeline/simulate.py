"""Stage `simulate`: the expected speed-up of every drafter over the draft length, from a store and a cost file.

Nothing is decoded: drafters are judged at every anchor of stored answers (once, then reused), the walks give the
iterations, the cost file gives the milliseconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xmsd_jax.config import ConfigError, UserError, dump
from xmsd_jax.data.store import Store
from xmsd_jax.decoding.imposed import imposed_speedups
from xmsd_jax.pipeline.cost_file import CostFile, read_cost_file
from xmsd_jax.pipeline.evaluate import STAGE, EvaluateConfig, evaluate
from xmsd_jax.pipeline.expected import Expected, expect
from xmsd_jax.pipeline.judged import Judged, read_judged
from xmsd_jax.pipeline.predicted import by_gamma, gamma_row
from xmsd_jax.pipeline.rows import TEXT, DraftRow
from xmsd_jax.pipeline.simulate_notices import Notices
from xmsd_jax.report.simulated import simulated_page, simulated_table
from xmsd_jax.runs import Row, Run, provenance, stage_key, write_results, write_text

PAGE = "simulate.html"
TITLE = "Expected speed-up over the draft length"


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """What is judged, and what it should cost.

    store: folder with one store a split, made by `xmsd extract`. costs: a cost file, by its path or as a packaged one
    (costs/demo_cpu.yaml): machine, baseline, and the milliseconds prefill, decode, verify {M: ms}; beside them what was
    measured of vision, draft {drafter: {gamma: ms}}, sync, early, host, prefill_per_extra, drafter.
    training: the split that text drafters are fitted on; splits: judged; adapters: folder of trained adapters, searched
    through; null judges text drafters and controls alone. gamma: the longest draft; prefill_draft_len: ids drafted in
    phase 1; order: longest context of the n-gram.
    rows: what to predict; none takes every drafter in phase 2 alone, and the text drafters with `ride` too. imposed:
    what-if acceptances 0..1 of each drafted token; imposed_like: the drafter whose costs they pay; null drafts for
    nothing.
    """

    store: Path
    costs: Path
    training: str = "train"
    splits: tuple[str, ...] = ("test",)
    adapters: Path | None = None
    gamma: int = 8
    prefill_draft_len: int = 12
    order: int = 8
    rows: tuple[DraftRow, ...] = ()
    imposed: tuple[float, ...] = ()
    imposed_like: str | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for what `evaluate` refuses, a row without a draft length, and what is no probability."""
        _ = self.evaluation
        for row in self.rows:
            if row.drafter is None:
                raise ConfigError(f"rows: {row.name} drafts in phase 1 only, so it has no gamma; give it a drafter")
            if row.auto:
                raise ConfigError(f"rows: {row.name}: the page shows every gamma up to the longest; leave gamma out")
            if row.longest(0) > self.gamma:
                raise ConfigError(f"rows: {row.name}: gamma {row.gamma} is above the longest draft, {self.gamma}")
        if wrong := [value for value in self.imposed if not 0 <= value <= 1]:
            raise ConfigError(f"imposed: an acceptance is a probability 0..1, got {wrong[0]:g}")
        _ = _paid(self)

    @property
    def evaluation(self) -> EvaluateConfig:
        """How drafters are judged."""
        return EvaluateConfig(
            store=self.store,
            training=self.training,
            splits=self.splits,
            adapters=self.adapters,
            gamma=self.gamma,
            prefill_draft_len=self.prefill_draft_len,
            order=self.order,
        )


def run(config: SimulateConfig, run_dir: Path, fresh: bool = False) -> list[Row]:
    """Judge (or reuse what was judged), predict, print the table; writes results.json and simulate.html."""
    costs = read_cost_file(config.costs, config.gamma)
    notices = Notices(costs=costs, name=config.costs.name, gamma=config.gamma, draft_len=config.prefill_draft_len)
    for row in (*config.rows, *_paid(config)):
        notices.refuse(row)
    run = Run.open(run_dir, config)
    evaluate(config.evaluation, run, fresh)
    rows: list[Row] = []
    for split in config.splits:
        store = Store.open(config.store / split)
        rows += simulated_rows(
            config, costs, split, store, read_judged(run.path / STAGE, split, store.manifest), notices
        )
    if not rows:
        raise UserError(f"{config.costs}: no drafter can be predicted: {'; '.join(notices.told)}")
    about = provenance() | {"config": dump(config), "costs": dump(costs), "notices": notices.told}
    write_results(run.path, rows, about)
    write_text(run.path / PAGE, simulated_page(TITLE, rows, about))
    print(simulated_table(rows))
    print("\n".join(f"notice: {notice}" for notice in notices.told))
    print(f"page: {run.path}/{PAGE}\nresults: {run.path}/results.json", flush=True)
    return rows


def default_rows(judged: Mapping[str, Judged]) -> list[DraftRow]:
    """Every drafter that has a phase 2, alone; text drafters also riding on the prompt."""
    late = [name for name, one in judged.items() if one.anchors is not None]
    alone = [DraftRow(drafter=name) for name in late]
    return alone + [DraftRow(drafter=name, prefill_mode="ride") for name in late if name in TEXT]


def simulated_rows(
    config: SimulateConfig,
    costs: CostFile,
    split: str,
    store: Store,
    judged: Mapping[str, Judged],
    notices: Notices,
) -> list[Row]:
    """Speed-up over gamma of each row on all stored answers of a split, then of each imposed acceptance."""
    names, lengths = store.names["sequences"], {w: store.read(f"{w}_len") for w in ("target", "drafter")}
    sequences = [names[number] for number in store.read("sequence")]
    shared = _settings(config, costs, split, store)
    rows = []
    for row in config.rows or default_rows(judged):
        if notices.leaves_out(row):
            continue
        _check_judged(row, judged, config)
        expected = expect(
            row,
            notices.limit(row),
            judged,
            target_len=lengths["target"],
            drafter_len=lengths["drafter"],
            known=[True] * store.rows,
        )
        rows.append(_predicted(costs, expected, sequences, shared))
    if not config.rows:
        notices.without_gamma([name for name, one in judged.items() if one.anchors is None])
    return rows + [_imposed(config, costs, value, lengths["target"], shared) for value in config.imposed]


def _predicted(costs: CostFile, expected: Expected, sequences: Sequence[str], shared: Mapping[str, Any]) -> Row:
    """The curve of a row, with intervals and tau at each draft length in its settings; 1 token a pass at gamma 0."""
    row, anchors = expected.row, expected.anchors
    choice = by_gamma(costs.parts(row), expected, sequences, costs.gammas(row, expected.gamma))
    if choice is None or anchors is None:
        raise ValueError(f"{row.name} has no phase 2, so no draft length")
    estimates = [choice.speedups[gamma] for gamma in sorted(choice.speedups)]
    taus = [anchors.tau(gamma, sequences=sequences).value if gamma else 1.0 for gamma in sorted(choice.speedups)]
    about: dict[str, Any] = {**shared, "taus": taus}
    if all(e.low is not None for e in estimates):
        about |= {"lows": [e.low for e in estimates], "highs": [e.high for e in estimates]}
    if expected.prefix is not None:
        about["prefill_draft_len"] = expected.prefix.drafted
    return replace(gamma_row(row, choice, about), baseline=costs.baseline)


def _imposed(config: SimulateConfig, costs: CostFile, value: float, target_len: Any, shared: Mapping[str, Any]) -> Row:
    """The curve of an acceptance that nobody drafted."""
    (paid,) = _paid(config) or (None,)
    gammas = list(range(config.gamma + 1)) if paid is None else costs.gammas(paid, config.gamma)
    values = imposed_speedups(costs.parts(paid), target_len, acceptance=value, gammas=gammas)
    top = max(values)
    lists = {"gammas": gammas, "values": values, "best": gammas[values.index(top)]}
    return Row(
        row=f"imposed {value:g}",
        metric="speedup_by_gamma",
        value=top,
        n=len(target_len),
        unit="x",
        baseline=costs.baseline,
        kind="imposed",
        settings={**shared, "acceptance": value, "costs_of": config.imposed_like, **lists},
    )


def _settings(config: SimulateConfig, costs: CostFile, split: str, store: Store) -> dict[str, Any]:
    return {
        "clips": split,
        "answers": store.rows,
        "target": f"{store.manifest.models['target']} of width {store.manifest.width}",
        "max_new_tokens": store.manifest.max_new_tokens,
        "dtype": store.manifest.dtype,
        "costs": config.costs.name,
        "costs_fingerprint": stage_key(costs)[:16],
        "machine": costs.machine,
    }


def _paid(config: SimulateConfig) -> list[DraftRow]:
    """Whose costs the imposed acceptances pay: one row, or none."""
    return [] if config.imposed_like is None else [DraftRow(drafter=config.imposed_like)]


def _check_judged(row: DraftRow, judged: Mapping[str, Judged], config: SimulateConfig) -> None:
    for name in (row.drafter, row.first):
        if name is not None and name not in judged:
            where = config.adapters or "adapters: null"
            told = f"there are {', '.join(judged)}: train it, or leave {row.name} out"
            raise UserError(f"rows: {name} was not found ({where}); {told}")
