"""Ladders whose acceptance is not the pair's own: decisions replayed from a record, or drafts by an oracle.

Both use the live loop, the parts and the predictions of a real pair's benchmark (`ladder_run`, `costs`, `figures`).
What differs: answers are known beforehand, rows are of kind "replayed" or "imposed", a certificate does not apply, and
the eager target answers every prompt once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xmsd_jax.decoding.cost import Parts
from xmsd_jax.decoding.ladder import Rung, climb, speculative
from xmsd_jax.decoding.oracle import Oracle
from xmsd_jax.decoding.ports import Drafter, Prompt, SomeIds
from xmsd_jax.decoding.text_anchors import text_anchors, text_free
from xmsd_jax.decoding.trace import Trace
from xmsd_jax.metrics.live import Times, time_metrics
from xmsd_jax.pipeline.costs import measure_parts
from xmsd_jax.pipeline.expected import Expected, expect
from xmsd_jax.pipeline.figures import CERTIFICATE, measured_rows, predicted_rows
from xmsd_jax.pipeline.judged import Judged
from xmsd_jax.pipeline.ladder_run import WARM_PROMPTS, Climbed, ClipAnswers
from xmsd_jax.pipeline.live_pair import EAGER, LivePair
from xmsd_jax.pipeline.predicted import COSTS, write_costs
from xmsd_jax.pipeline.rows import DraftRow
from xmsd_jax.report.rows import live_rows
from xmsd_jax.runs import Row, progress, provenance, write_results

SEED = 0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of such a ladder: who drafts; with `acceptance` an oracle does, at that drafter's compute."""

    row: DraftRow
    acceptance: float | None = None

    @property
    def name(self) -> str:
        """The row's name in traces; that of a replayed row is the drafter's own."""
        return self.row.name if self.acceptance is None else f"{self.row.name} at {self.acceptance:g}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """Prompts with the answers that the target will be made to give, by the name of the prompt's clip."""

    clips: str
    prompts: tuple[Prompt, ...]
    answers: Mapping[str, SomeIds]

    def ids(self, prompt: Prompt) -> tuple[int, ...]:
        """The answer to a prompt."""
        return tuple(int(i) for i in self.answers[prompt.clip.name])


def run_ladder(
    asked: Asked,
    entries: Sequence[Entry],
    pair: LivePair,
    *,
    kind: Literal["replayed", "imposed"],
    repeats: int,
    settings: Mapping[str, Any],
    stage: Path,
) -> list[Row]:
    """Predict every row, write that down, decode all rows turn by turn; measured and predicted rows.

    `stage`: folder for what was predicted. `pair` must replay the answers.
    """
    pair.warm(asked.prompts[0])
    one = _prepared(asked, entries, pair)
    predicted = predicted_rows(one, pair, settings)
    write_costs(stage / COSTS, {one.clips: one.costs}, {"baseline": pair.plain, "settings": dict(settings)})
    write_results(stage / "predicted", predicted, provenance())
    slow = EAGER if pair.plain != EAGER else None  # what nothing is measured against need not be repeated
    plain = [replace(r, most=1) if r.name == slow else r for r in pair.plain_rungs(engine_alone=kind == "imposed")]
    rungs = [*plain, *(_rung(pair, entry, one) for entry in entries)]
    climb(rungs, one.prompts[:WARM_PROMPTS], repeats=1)
    turns = partial(progress, total=repeats * len(one.prompts), label=f"live, {kind}: {one.clips}")
    traces = climb(rungs, one.prompts, repeats=repeats, watch=turns)
    climbed = Climbed(answers=one, rungs=tuple(rungs), traces=traces, timed=np.ones(len(one.prompts), bool))
    rows = measured_rows(climbed, pair, settings, "float32")  # ids are given: a walk that differs is no tie
    found = [replace(row, kind=kind) for row in rows if row.metric not in CERTIFICATE]
    named = {entry.name: entry for entry in entries}
    if pair.by_library is not None and kind == "replayed":
        found += _over_library(climbed, pair, settings)
    found = [replace(row, settings={**row.settings, "repeats": 1}) if row.row == slow else row for row in found]
    told = [_told(row, named.get(row.row)) for row in [*found, *predicted]] + _cost_rows(one, entries, settings)
    return [replace(row, settings={**row.settings, "weights": settings["weights"]}) for row in told]


def _over_library(climbed: Climbed, pair: LivePair, settings: Mapping[str, Any]) -> list[Row]:
    """Every row against plain decoding by the library's products, turn by turn beside it."""
    names = [rung.name for rung in climbed.rungs]
    typical = {name: climbed.typical(name, timed=True) for name in names}
    times = {name: Times.of([trace.seconds for trace in found.values()]) for name, found in typical.items()}
    rows: list[Row] = []
    for name in names:
        sequences = [climbed.answers.sequences[at] for at in typical[name]]
        figures = time_metrics(times[name], sequences=sequences, baseline=times[pair.library_row])
        told = {f"{metric}_over_library": figures[metric] for metric in ("speedup", "decode_speedup")}
        about = {"clips": climbed.answers.clips, "baseline": pair.library_row, "settings": settings}
        rows += live_rows(name, told, kind="replayed", **about)
    return rows


def _cost_rows(one: ClipAnswers, entries: Sequence[Entry], settings: Mapping[str, Any]) -> list[Row]:
    """T_draft of every drafter at the lengths that it was timed at."""
    costs = {entry.row.name: one.costs[entry.name] for entry in entries}
    return [
        Row(row=name, metric="T_draft_ms", value=spent * 1e3, unit="ms", settings={**settings, "gamma": gamma})
        for name, parts in costs.items()
        for gamma, spent in sorted(parts.draft.items())
    ]


def _told(row: Row, entry: Entry | None) -> Row:
    """An imposed row says what was imposed, at whose compute."""
    if entry is None or entry.acceptance is None:
        return row
    about = {"acceptance": entry.acceptance, "compute": entry.row.name}
    return replace(row, row=entry.row.name, settings={**row.settings, **about})


def _prepared(asked: Asked, entries: Sequence[Entry], pair: LivePair) -> ClipAnswers:
    """What is expected of each entry: its walk over the given answers, and measured parts."""
    own = [_reference(asked.ids(prompt)) for prompt in asked.prompts]
    rows = list({entry.row: None for entry in entries})
    costs = measure_parts(pair, rows, asked.prompts, own)
    return ClipAnswers(
        clips=asked.clips,
        prompts=asked.prompts,
        references=tuple(own),
        expected={entry.name: _expected(entry, asked, pair, costs[entry.row.name]) for entry in entries},
        costs={entry.name: costs[entry.row.name] for entry in entries},
    )


def _reference(ids: tuple[int, ...]) -> Trace:
    return Trace(ids=ids, origins=("target",) * len(ids), stop="length")


def _expected(entry: Entry, asked: Asked, pair: LivePair, parts: Parts) -> Expected:
    row, answers = entry.row, [asked.ids(prompt) for prompt in asked.prompts]
    gamma, early = row.longest(pair.lengths.gamma), pair.lengths.prefill_draft_len
    given = {"prompt_ids": pair.verifier.prompt_ids}
    judged: dict[str, Judged] = {}
    for name, most in ((row.drafter, gamma), (row.first, early)):
        if name is None:
            continue
        drafter = _offline(entry, name, most, asked, pair)
        anchors = text_anchors(
            drafter, answers, asked.prompts, gamma=gamma, positions=pair.lengths.max_new_tokens, **given
        )
        prefix = text_free(drafter, answers, asked.prompts, draft_len=early, **given)
        judged[name] = Judged(anchors=anchors, prefix=prefix)
    lengths = np.array([len(ids) for ids in answers])
    longest = np.full(len(answers), pair.lengths.max_new_tokens)  # random weights never end an answer of the drafter
    return expect(
        row, gamma, judged, target_len=lengths, drafter_len=longest, known=np.ones(len(answers), bool), parts=parts
    )


def _offline(entry: Entry, name: str, most: int, asked: Asked, pair: LivePair) -> Drafter:
    """Who drafts, without the compute that an oracle pays."""
    return pair.drafter(name, most) if entry.acceptance is None else _oracle(entry.acceptance, asked, pair, None)


def _oracle(acceptance: float, asked: Asked, pair: LivePair, compute: Drafter | None) -> Oracle:
    return Oracle(
        asked.answers, acceptance, SEED, vocabulary=pair.target.real_vocabulary, compute=compute,
        name="oracle" if compute is None else compute.name,
    )  # fmt: skip


def _rung(pair: LivePair, entry: Entry, one: ClipAnswers) -> Rung:
    row, expected = entry.row, one.expected[entry.name]
    late, early = pair.late_drafter(row), pair.early_drafter(row)
    if entry.acceptance is not None:
        answers = {p.clip.name: r.ids for p, r in zip(one.prompts, one.references, strict=True)}
        asked = Asked(clips=one.clips, prompts=one.prompts, answers=answers)
        late, early = (None if who is None else _oracle(entry.acceptance, asked, pair, who) for who in (late, early))
    return speculative(
        entry.name, pair.verifier, late, pair.lengths.config(row), prefill_drafter=early, lengths=expected.lengths
    )
