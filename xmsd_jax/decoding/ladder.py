"""The benchmark ladder: every row answers every prompt, interleaved, several times; then the figures of each row.

Rows take turns prompt by prompt, and the order rotates, so that a slow spell of the machine falls on all of them.
A row's time for an answer is that of its median repeat, kept whole: its parts add up.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from xmsd_jax.decoding.certificate import Certificate, Dtype, certify, compare
from xmsd_jax.decoding.draft_lengths import DraftLengths
from xmsd_jax.decoding.live import LiveConfig, decode
from xmsd_jax.decoding.plain import decode_plain
from xmsd_jax.decoding.ports import Context, Drafter, Prompt, Verifier
from xmsd_jax.decoding.trace import Trace
from xmsd_jax.decoding.walk import Walk, free_prefix, walk


@dataclass(frozen=True, kw_only=True, eq=False)
class Rung:
    """One row: `answer` decodes a prompt. `config` is None for a row that does not speculate.

    `drafter` is that of phase 2 (None: plain decoding), `prefill_drafter` that of phase 1 (None: the same, if any).
    `most`: how often a prompt is answered at most, for a slow row that nothing is measured against.
    """

    name: str
    answer: Callable[[Prompt], Trace]
    drafter: Drafter | None = None
    config: LiveConfig | None = None
    prefill_drafter: Drafter | None = None
    most: int | None = None


def speculative(
    name: str,
    verifier: Verifier,
    drafter: Drafter | None,
    config: LiveConfig,
    prefill_drafter: Drafter | None = None,
    lengths: DraftLengths | None = None,
) -> Rung:
    """A row that drafts in phase 2 by `drafter`, and in phase 1 as `config` says; `lengths` as in `decode`."""
    return Rung(
        name=name,
        drafter=drafter,
        config=config,
        prefill_drafter=prefill_drafter,
        answer=lambda prompt: decode(
            verifier, drafter, prompt, config, prefill_drafter=prefill_drafter, lengths=lengths
        ),
    )


def climb(
    rungs: Sequence[Rung],
    prompts: Sequence[Prompt],
    *,
    repeats: int,
    watch: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, list[list[Trace]]]:
    """Decode every prompt with every row `repeats` times: name -> [prompt][repeat]. `watch` may show progress."""
    traces: dict[str, list[list[Trace]]] = {rung.name: [[] for _ in prompts] for rung in rungs}
    for turn in watch(range(repeats * len(prompts))):
        at = turn % len(prompts)
        first = turn % len(rungs)
        for rung in (*rungs[first:], *rungs[:first]):
            if rung.most is None or len(traces[rung.name][at]) < rung.most:
                traces[rung.name][at].append(rung.answer(prompts[at]))
    return traces


def whole_seconds(trace: Trace) -> float:
    """Wall clock of the whole answer."""
    return sum(trace.seconds[part] for part in ("vision", "prefill", "first", "decode"))


def typical(repeats: Sequence[Trace]) -> Trace:
    """The repeat with the median whole time (the faster of the middle two)."""
    return sorted(repeats, key=whole_seconds)[(len(repeats) - 1) // 2]


def references(verifier: Verifier, prompts: Iterable[Prompt], max_new_tokens: int) -> list[Trace]:
    """Target-only answers with the margins that the certificate judges ties by; not for timing."""
    return [decode_plain(verifier, prompt, max_new_tokens, margins=True) for prompt in prompts]


def certificate(
    expected: Sequence[Trace], traces: Sequence[Sequence[Trace]], *, dtype: Dtype, names: Sequence[str]
) -> Certificate:
    """Compare every repeat of every answer of one row with its reference."""
    return certify(
        compare(ref.ids, got.ids, dtype=dtype, margins=ref.margins, top_logits=ref.top_logits, answer=name)
        for ref, repeats, name in zip(expected, traces, names, strict=True)
        for got in repeats
    )


def proposal_seconds(rung: Rung, verifier: Verifier, prompt: Prompt, answer: Trace) -> list[float]:
    """Wall clock of the row's drafter alone, at every anchor of a reference answer; none for a row without drafts."""
    if rung.drafter is None or rung.config is None:
        return []
    given, seconds = verifier.prompt_ids(prompt), []
    for known in range(1, len(answer.ids)):
        context = Context(prompt=prompt, ids=np.array(answer.ids[:known], np.int32), prompt_ids=given)
        start = perf_counter()
        rung.drafter.propose(context, rung.config.gamma)
        seconds.append(perf_counter() - start)
    return seconds


def offline(rung: Rung, verifier: Verifier, prompt: Prompt, answer: Trace) -> Walk | None:
    """The walk that this row should take over a reference answer; None for a row without drafts."""
    if rung.drafter is None or rung.config is None:
        return None
    given = verifier.prompt_ids(prompt)
    free = rung.config.prefill_draft_len
    start = free_prefix(answer.ids, rung.drafter, prompt, free, prompt_ids=given) if free else 0
    return walk(answer.ids, rung.drafter, prompt, rung.config.gamma, start=start, prompt_ids=given)
