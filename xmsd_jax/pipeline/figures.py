"""From the traces of a ladder to rows of results.json: times against the named baseline, certificate, walk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from xmsd_jax.decoding.certificate import Dtype
from xmsd_jax.decoding.ladder import Rung, certificate, offline, proposal_seconds, typical
from xmsd_jax.decoding.ports import Prompt, Verifier
from xmsd_jax.decoding.trace import Trace
from xmsd_jax.metrics.live import Times, live_metrics
from xmsd_jax.report.rows import certificate_rows, live_rows
from xmsd_jax.runs import Row, RunFailed


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What a ladder gave on one set of clips: prompts, reference answers, and name -> [prompt][repeat] traces."""

    clips: str
    prompts: tuple[Prompt, ...]
    expected: tuple[Trace, ...]
    traces: Mapping[str, Sequence[Sequence[Trace]]]

    def typical(self, row: str) -> list[Trace]:
        """The median repeat of each answer of a row."""
        return [typical(repeats) for repeats in self.traces[row]]

    @property
    def names(self) -> list[str]:
        """Each prompt in words."""
        return [f"{p.clip.name}, question {p.question_index + 1}" for p in self.prompts]


def measured_rows(
    measured: Measured, verifier: Verifier, rungs: Sequence[Rung], settings: Mapping[str, Any], dtype: Dtype
) -> list[Row]:
    """All rows of a set. The baseline is the fastest row that does not speculate, by the sum of whole times."""
    times = {rung.name: Times.of([t.seconds for t in measured.typical(rung.name)]) for rung in rungs}
    plain = [rung.name for rung in rungs if rung.config is None]
    baseline = min(plain, key=lambda name: float(times[name].whole.sum()))
    rows: list[Row] = []
    for rung in rungs:
        rows += _live(measured, rung, times, baseline, settings)
        if rung.config is not None:
            proof = certificate(measured.expected, measured.traces[rung.name], dtype=dtype, names=measured.names)
            rows += certificate_rows(rung.name, proof.to_json(), clips=measured.clips)
            rows += _walk(measured, rung, verifier)
            rows.append(_proposal(measured, rung, verifier))
    return rows


def check(rows: Sequence[Row]) -> None:
    """Raise RunFailed unless every certificate holds and every live run took the walk that was expected."""
    wrong = [r for r in rows if r.metric in ("divergences", "walk_differs") and r.value]
    if wrong:
        told = "; ".join(f"{r.row}: {r.value:g} {r.metric} on {r.settings['clips']}" for r in wrong)
        raise RunFailed(f"{told}; see results.json")


def _live(
    measured: Measured, rung: Rung, times: Mapping[str, Times], baseline: str, settings: Mapping[str, Any]
) -> list[Row]:
    answers, config = measured.typical(rung.name), rung.config
    figures = live_metrics(
        tokens=[len(t.ids) for t in answers],
        times=times[rung.name],
        sequences=[p.clip.sequence for p in measured.prompts],
        iterations=[len(t.iterations) for t in answers] if config else None,
        emitted=[t.emitted for t in answers] if config else None,
        n_free=[t.n_free for t in answers] if config and config.prefill_draft_len else None,
        baseline=times[baseline],
    )
    own = {"gamma": config.gamma, "prefill_draft_len": config.prefill_draft_len} if config else {}
    return live_rows(rung.name, figures, clips=measured.clips, baseline=baseline, settings={**settings, **own})


def _proposal(measured: Measured, rung: Rung, verifier: Verifier) -> Row:
    """What the drafter itself takes for gamma ids, without the loop around it: the median over all anchors."""
    pairs = zip(measured.prompts, measured.expected, strict=True)
    spent = [s for prompt, answer in pairs for s in proposal_seconds(rung, verifier, prompt, answer)]
    micros = median(spent) * 1e6 if spent else None
    gamma = rung.config.gamma if rung.config else 0
    about = {"clips": measured.clips, "gamma": gamma}
    return Row(row=rung.name, metric="proposal_us", value=micros, n=len(spent), unit="us", settings=about)


def _walk(measured: Measured, rung: Rung, verifier: Verifier) -> list[Row]:
    """How many equal answers took another number of iterations live than the offline walk over the reference says."""
    differs = compared = 0
    for prompt, reference, answer in zip(measured.prompts, measured.expected, measured.typical(rung.name), strict=True):
        walked = offline(rung, verifier, prompt, reference)
        if walked is not None and answer.ids == reference.ids:
            compared += 1
            differs += walked.iterations != len(answer.iterations)
    if not compared:
        return []
    about = {"clips": measured.clips, "what": "live iterations against the offline walk, answer by answer"}
    return [Row(row=rung.name, metric="walk_differs", value=differs, n=compared, unit="answers", settings=about)]
