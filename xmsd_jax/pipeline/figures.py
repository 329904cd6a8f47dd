"""From expected walks and decoded answers to rows of results.json."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from xmsd_jax.decoding.certificate import Dtype
from xmsd_jax.decoding.ladder import Rung, certificate, proposal_seconds
from xmsd_jax.decoding.trace import Trace
from xmsd_jax.metrics.live import Times, count_metrics, time_metrics
from xmsd_jax.pipeline.curves import curve_row
from xmsd_jax.pipeline.expected import Expected, agreement
from xmsd_jax.pipeline.ladder_run import Climbed, ClipAnswers
from xmsd_jax.pipeline.live_pair import LivePair
from xmsd_jax.pipeline.predicted import (
    by_gamma,
    gamma_row,
    measured_parts,
    part_rows,
    predicted_baseline,
    predicted_parts,
)
from xmsd_jax.report.rows import certificate_rows, live_rows
from xmsd_jax.runs import Row, RunFailed

FAILURES = ("divergences", "walk_differs")
CERTIFICATE = ("answers_compared", "divergences", "ties")


def predicted_rows(one: ClipAnswers, pair: LivePair, settings: Mapping[str, Any]) -> list[Row]:
    """What each row of a set should take: mean milliseconds by part, and the speed-up over gamma."""
    shared = {**settings, "clips": one.clips}
    lengths = np.array([len(trace.ids) for trace in one.references])
    rows = []
    for name, expected in one.expected.items():
        about = {**shared, **_lengths(expected)}
        parts = one.costs[name]
        if not rows:
            rows += part_rows(pair.plain, predicted_baseline(parts, lengths), kind="predicted", settings=shared)
        rows += part_rows(name, predicted_parts(parts, expected), kind="predicted", settings=about)
        choice = by_gamma(parts, expected, one.sequences)
        rows += [] if choice is None else [gamma_row(expected.row, choice, shared, pair.plain)]
        if expected.anchors is not None:
            rows.append(_walked_shares(name, expected, one.sequences, shared))
    return rows


def measured_rows(climbed: Climbed, pair: LivePair, settings: Mapping[str, Any], dtype: Dtype) -> list[Row]:
    """All rows of a set. The baseline is the fastest row that does not speculate, by the sum of whole times."""
    one = climbed.answers
    times = {r.name: Times.of([t.seconds for t in climbed.typical(r.name, timed=True).values()]) for r in climbed.rungs}
    plain = [rung.name for rung in climbed.rungs if rung.config is None]
    baseline = min(plain, key=lambda name: float(times[name].whole.sum()))
    rows: list[Row] = []
    for rung in climbed.rungs:
        expected = one.expected.get(rung.name)
        own = {} if expected is None else _lengths(expected)
        rows += _live(climbed, rung, times, baseline, {**settings, **own})
        about = {**settings, **own, "clips": one.clips}
        timed = list(climbed.typical(rung.name, timed=True).values())
        if rung.name == pair.plain or expected is not None:
            rows += part_rows(rung.name, measured_parts(timed), kind="measured", settings=about)
        if expected is not None:
            proof = certificate(one.references, climbed.traces[rung.name], dtype=dtype, names=one.names)
            rows += certificate_rows(rung.name, proof.to_json(), clips=one.clips)
            rows += _walk(climbed, rung, expected, dtype)
            rows += _live_shares(climbed, rung, expected, settings)
            rows += _proposal(climbed, rung, pair)
    return rows


def check(rows: Sequence[Row]) -> None:
    """Raise RunFailed unless every certificate holds and every live run took the walk that was expected."""
    wrong = [r for r in rows if r.metric in FAILURES and r.value]
    if wrong:
        told = "; ".join(f"{r.row}: {r.value:g} {r.metric} on {r.settings['clips']}" for r in wrong)
        raise RunFailed(f"{told}; see results.json")


def _lengths(expected: Expected) -> dict[str, Any]:
    """The draft lengths of a row, where it has them."""
    gamma = {} if expected.anchors is None else {"gamma": "auto" if expected.row.auto else expected.gamma}
    return gamma | ({} if expected.prefix is None else {"prefill_draft_len": expected.prefix.drafted})


def _live(
    climbed: Climbed, rung: Rung, times: Mapping[str, Times], baseline: str, settings: Mapping[str, Any]
) -> list[Row]:
    """Counts over all answers that the row decoded, times over those that were timed whole."""
    found, sequences = climbed.typical(rung.name), climbed.answers.sequences
    answers, config = list(found.values()), rung.config
    counts = count_metrics(
        tokens=[len(t.ids) for t in answers],
        sequences=[sequences[at] for at in found],
        iterations=[len(t.iterations) for t in answers] if rung.drafter else None,
        emitted=[t.emitted for t in answers] if rung.drafter else None,
        n_free=[t.n_free for t in answers] if config and config.prefill_draft_len else None,
    )
    timed = [sequences[at] for at in climbed.typical(rung.name, timed=True)]
    figures = {**counts, **time_metrics(times[rung.name], sequences=timed, baseline=times[baseline])}
    return live_rows(rung.name, figures, clips=climbed.answers.clips, baseline=baseline, settings=settings)


def _walk(climbed: Climbed, rung: Rung, expected: Expected, dtype: Dtype) -> list[Row]:
    """How many equal answers took another walk live than the offline one, but for ties of the drafter's head."""
    references = climbed.answers.references
    verdicts = [
        agreement(expected, at, trace, dtype=dtype)
        for at, trace in climbed.typical(rung.name).items()
        if expected.known[at] and trace.ids == references[at].ids
    ]
    if not verdicts:
        return []
    about = {"clips": climbed.answers.clips, "what": "live iterations against the offline walk, answer by answer"}
    counts = {"walk_differs": verdicts.count("differs"), "walk_ties": verdicts.count("tie")}
    return [
        Row(row=rung.name, metric=metric, value=value, n=len(verdicts), unit="answers", settings=about)
        for metric, value in counts.items()
    ]


def _walked_shares(name: str, expected: Expected, sequences: Sequence[str], settings: Mapping[str, Any]) -> Row:
    """S_k over the anchors that the offline walk visits."""
    walk: Any = expected.walk
    counts, total = walk.prefix_counts(expected.gamma)
    return curve_row(name, counts, total, sequences, {**settings, "how": "rolled out, visited anchors"})


def _live_shares(climbed: Climbed, rung: Rung, expected: Expected, settings: Mapping[str, Any]) -> list[Row]:
    """S_k over the anchors that were visited live."""
    if expected.anchors is None:
        return []
    found = climbed.typical(rung.name)
    gamma = expected.gamma
    accepted = [np.array([i.accepted for i in trace.iterations], int) for trace in found.values()]
    counts = np.array([[(a >= k).sum() for k in range(1, gamma + 1)] for a in accepted])
    total = np.array([len(a) for a in accepted])
    sequences = [climbed.answers.sequences[at] for at in found]
    about = {**settings, "clips": climbed.answers.clips, "how": "live, visited anchors"}
    return [curve_row(rung.name, counts, total, sequences, about)]


def _proposal(climbed: Climbed, rung: Rung, pair: LivePair) -> list[Row]:
    """What a text drafter takes for gamma ids, without the loop around it: the median over all anchors."""
    if rung.drafter is None or hasattr(rung.drafter, "lane"):
        return []
    one = climbed.answers
    pairs: zip[tuple[Any, Trace]] = zip(one.prompts, one.references, strict=True)
    spent = [s for prompt, answer in pairs for s in proposal_seconds(rung, pair.verifier, prompt, answer)]
    gamma = rung.config.gamma if rung.config else 0
    about = {"clips": one.clips, "gamma": gamma}
    value = median(spent) * 1e6 if spent else None
    return [Row(row=rung.name, metric="proposal_us", value=value, n=len(spent), unit="us", settings=about)]
