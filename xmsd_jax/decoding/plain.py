"""Target-only decoding: the reference of every certificate and the plain baseline. One token a pass (M = 1)."""

import numpy as np

from xmsd_jax.decoding.acceptance import sample, softmax
from xmsd_jax.decoding.clock import Clock
from xmsd_jax.decoding.ports import Prompt, Verified, Verifier
from xmsd_jax.decoding.stopping import Answer
from xmsd_jax.decoding.trace import Trace


def decode_plain(
    verifier: Verifier,
    prompt: Prompt,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    rng: np.random.Generator | None = None,
    margins: bool = False,
) -> Trace:
    """Decode one answer with the target alone; same stop rules as `live.decode`, no drafts.

    `margins` fills the trace's `margins` and `top_logits`, which the certificate judges ties by. It moves all logits to
    the host at each token, so a run that is timed leaves it off. `rng` is needed at temperature > 0.
    """
    if max_new_tokens < 1:
        raise ValueError(f"an answer has at least 1 token, got max_new_tokens = {max_new_tokens}")
    if temperature > 0 and rng is None:
        raise ValueError(f"sampling at temperature {temperature} needs a seeded rng, got None; pass one")
    logits = margins or temperature > 0
    clock, tops = Clock(verifier), []
    answer = Answer(eos_ids=verifier.eos_ids, max_new_tokens=max_new_tokens)
    verified = verifier.prefill(prompt, logits=logits)
    clock.lap("prefill")
    while True:
        if margins:
            tops.append(top_two(verified))
        answer.emit([_next(verified, temperature, rng)], "target")
        clock.lap("host")
        if answer.stop is not None:
            break
        verified = verifier.step(answer.ids[-1], logits=logits)
        clock.lap("verify")
    return Trace(
        ids=tuple(answer.ids),
        origins=tuple(answer.origins),
        stop=answer.stop,
        seconds=clock.seconds(),
        spans=clock.spans(),
        margins=tuple(top - second for top, second in tops) if margins else None,
        top_logits=tuple(top for top, _ in tops) if margins else None,
    )


def top_two(verified: Verified) -> tuple[float, float]:
    """Largest and second largest logit of the first state."""
    second, top = np.partition(np.asarray(verified.logits, np.float32)[0], -2)[-2:]
    return float(top), float(second)


def _next(verified: Verified, temperature: float, rng: np.random.Generator | None) -> int:
    if rng is None or not temperature > 0:
        return int(verified.ids[0])
    return sample(softmax(verified.logits, temperature)[0], rng.random())
