"""One set of clips through the ladder: what is expected of each row, what it should cost, and the live turns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from xmsd_jax.config import UserError
from xmsd_jax.data.store import Store
from xmsd_jax.decoding.cost import Parts
from xmsd_jax.decoding.ladder import Rung, climb, references, typical
from xmsd_jax.decoding.ports import Prompt
from xmsd_jax.decoding.text_anchors import text_anchors, text_free
from xmsd_jax.decoding.trace import Trace
from xmsd_jax.pipeline.costs import measure_parts
from xmsd_jax.pipeline.expected import Expected, expect, taken, taken_prefix
from xmsd_jax.pipeline.judged import Judged, read_judged
from xmsd_jax.pipeline.live_pair import LivePair
from xmsd_jax.pipeline.rows import TEXT, DraftRow
from xmsd_jax.runs import progress

WARM_PROMPTS = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipAnswers:
    """A set before it is decoded live: prompts, the target's own answers, each row's expected walk and parts."""

    clips: str
    prompts: tuple[Prompt, ...]
    references: tuple[Trace, ...]
    expected: Mapping[str, Expected]
    costs: Mapping[str, Parts]

    @property
    def sequences(self) -> list[str]:
        """The sequence of each prompt."""
        return [prompt.clip.sequence for prompt in self.prompts]

    @property
    def names(self) -> list[str]:
        """Each prompt in words."""
        return [f"{p.clip.name}, question {p.question_index + 1}" for p in self.prompts]


@dataclass(frozen=True, kw_only=True, eq=False)
class Climbed:
    """What the ladder gave: name -> [prompt][repeat]. Rows that do not speculate have none where `timed` is False."""

    answers: ClipAnswers
    rungs: tuple[Rung, ...]
    traces: Mapping[str, Sequence[Sequence[Trace]]]
    timed: np.ndarray

    def typical(self, row: str, *, timed: bool = False) -> dict[int, Trace]:
        """Prompt number -> the median repeat; with `timed`, of the prompts that were timed whole."""
        wanted = (at for at in range(len(self.timed)) if self.traces[row][at] and (self.timed[at] or not timed))
        return {at: typical(self.traces[row][at]) for at in wanted}


def prepare(
    clips: str,
    prompts: Sequence[Prompt],
    rows: Sequence[DraftRow],
    pair: LivePair,
    *,
    store: Store | None,
    evaluation: Path | None,
    split: str,
) -> ClipAnswers:
    """The target's own answers (untimed, with the margins that ties are judged by), walks, and measured parts.

    `store` and `evaluation` are those of the split, for rows with adapters.
    """
    seen = progress(prompts, total=len(prompts), label=f"reference: {clips}")
    own = references(pair.shared, seen, pair.lengths.max_new_tokens)
    gamma = max([pair.lengths.gamma, *(row.longest(0) for row in rows)])
    judged: dict[str, Judged] = {name: _judge_text(pair, name, prompts, own, gamma) for name in _text_names(rows)}
    known = np.ones(len(prompts), bool)
    drafter_len = np.zeros(len(prompts), np.int64)
    if store is not None and evaluation is not None:
        at = rows_of(store, prompts)
        judged |= {name: _taken(one, at) for name, one in read_judged(evaluation, split, store.manifest).items()
                   if name not in TEXT}  # fmt: skip
        known = np.array(
            [tuple(store.token_ids("target", row)) == trace.ids for row, trace in zip(at, own, strict=True)]
        )
        drafter_len = store.read("drafter_len")[at]
    lengths = [len(trace.ids) for trace in own]
    _check_judged(judged, rows, pair)
    print(f"costs: {clips}", flush=True)
    costs = measure_parts(pair, rows, prompts, own)
    expected = {
        row.name: expect(row, row.longest(pair.lengths.gamma), judged, target_len=lengths, drafter_len=drafter_len,
                         known=known, parts=costs[row.name])
        for row in rows
    }  # fmt: skip
    return ClipAnswers(
        clips=clips,
        prompts=tuple(prompts),
        references=tuple(own),
        expected=expected,
        costs=costs,
    )


def climb_set(
    one: ClipAnswers, pair: LivePair, rows: Sequence[DraftRow], *, repeats: int, timed: int | None
) -> Climbed:
    """Decode every prompt with every row: `timed` of them whole and interleaved, the others with a shared prefill."""
    chosen = np.zeros(len(one.prompts), bool)
    chosen[np.unique(np.linspace(0, len(chosen) - 1, min(timed or len(chosen), len(chosen))).astype(int))] = True
    rungs = [*pair.plain_rungs(), *(pair.rung(row, draft_lengths=one.expected[row.name].lengths) for row in rows)]
    traces: dict[str, list[list[Trace]]] = {rung.name: [[] for _ in one.prompts] for rung in rungs}
    pair.warm(one.prompts[0])
    climb(rungs, one.prompts[:WARM_PROMPTS], repeats=1)

    # whole answers, timed
    whole = [one.prompts[at] for at in np.flatnonzero(chosen)]
    turns = partial(progress, total=repeats * len(whole), label=f"live, timed: {one.clips}")
    for name, found in climb(rungs, whole, repeats=repeats, watch=turns).items():
        for at, trace in zip(np.flatnonzero(chosen), found, strict=True):
            traces[name][at] = trace

    # decoding alone
    pair.share(True)
    shared = [pair.rung(row, pair.shared, draft_lengths=one.expected[row.name].lengths) for row in rows]
    rest = [one.prompts[at] for at in np.flatnonzero(~chosen)]
    turns = partial(progress, total=len(rest), label=f"live: {one.clips}")
    for name, found in climb(shared, rest, repeats=1, watch=turns).items():
        for at, trace in zip(np.flatnonzero(~chosen), found, strict=True):
            traces[name][at] = trace
    pair.share(False)
    return Climbed(answers=one, rungs=tuple(rungs), traces=traces, timed=chosen)


def rows_of(store: Store, prompts: Sequence[Prompt]) -> np.ndarray:
    """The store's row of each prompt. Raises UserError for one that it does not hold."""
    clips = store.names["clips"]
    keys = zip(store.read("clip"), store.read("question"), strict=True)
    places = {(clips[clip], int(question)): row for row, (clip, question) in enumerate(keys)}
    missing = [p for p in prompts if (p.clip.name, p.question_index) not in places]
    if missing:
        raise UserError(
            f"store: {store.path}: holds no answer to question {missing[0].question_index + 1} about "
            f"{missing[0].clip.name}; extract and evaluate the clips that are asked about"
        )
    return np.array([places[p.clip.name, p.question_index] for p in prompts])


def _text_names(rows: Sequence[DraftRow]) -> list[str]:
    names = (name for row in rows for name in (row.drafter, row.first))
    return list(dict.fromkeys(name for name in names if name in TEXT))


def _judge_text(pair: LivePair, name: str, prompts: Sequence[Prompt], own: Sequence[Trace], gamma: int) -> Judged:
    drafter, answers = pair.drafter(name, gamma), [trace.ids for trace in own]
    asked = {"prompt_ids": pair.verifier.prompt_ids}
    return Judged(
        anchors=text_anchors(drafter, answers, prompts, gamma=gamma, positions=pair.lengths.max_new_tokens, **asked),
        prefix=text_free(drafter, answers, prompts, draft_len=pair.lengths.prefill_draft_len, **asked),
    )


def _taken(judged: Judged, at: np.ndarray) -> Judged:
    return Judged(
        anchors=None if judged.anchors is None else taken(judged.anchors, at),
        prefix=None if judged.prefix is None else taken_prefix(judged.prefix, at),
    )


def _check_judged(judged: Mapping[str, Judged], rows: Sequence[DraftRow], pair: LivePair) -> None:
    """Raise UserError unless every drafter was judged with at least the lengths that are decoded live."""
    for row in rows:
        gamma = row.longest(pair.lengths.gamma)
        for name, what, held, asked in (
            (row.drafter, "gamma", "anchors", gamma),
            (row.first, "prefill_draft_len", "prefix", pair.lengths.prefill_draft_len),
        ):
            found = getattr(judged.get(name or ""), held, None)
            length = 0 if found is None else found.gamma if held == "anchors" else found.drafted
            if name is not None and (length < asked if held == "anchors" else length != asked):
                raise UserError(
                    f"evaluation: {name} was judged with {what} {length}, decoding asks for {asked}; evaluate with that"
                )
