"""Loss, sums and gradients of a kind, plain or by its kernels, which are interpreted where there is no GPU."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.adapters.small import FACTS, lively_value
from xmsd_jax.adapters import attend, blocks, row_kernels
from xmsd_jax.adapters.files import assign, named_parameters
from xmsd_jax.adapters.interface import Streams
from xmsd_jax.adapters.kinds import make
from xmsd_jax.adapters.noise import Noise
from xmsd_jax.adapters.stored import Stored
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.training import losses
from xmsd_jax.training.losses import Objective, Truth, counts
from xmsd_jax.training.state import Skeleton, lowered

WIDTH, LENGTH = 128, 11  # heads of 16, the narrowest that a kernel takes; a length that is no power of two
LENGTHS = np.array([11, 7, 0, 1])  # 44 positions for 24 programs: some have two, some have one
CORES = 12


class Found(NamedTuple):
    """Value, summed losses, and gradients by name."""

    value: Any
    tops: Any
    slopes: dict[str, Any]


def use_kernels(patch: pytest.MonkeyPatch, *, any_dtype: bool) -> None:
    """Let kernels run on this backend, in any dtype if asked."""
    patch.setattr(attend, "BACKENDS", ("gpu", "cpu"))
    patch.setattr(row_kernels, "_cores", lambda: CORES)
    if any_dtype:
        for module in (attend, blocks, losses):
            patch.setattr(module, "rows_are_fused", lambda width, dtype: width & (width - 1) == 0)


def truth(dtype: Any, rows: int = len(LENGTHS)) -> tuple[Streams, Truth]:
    """States, of which those past the end of an answer are zeros, and what they are compared with."""
    draw, places = np.random.default_rng(5), np.arange(LENGTH)
    lengths = np.resize(LENGTHS, rows)[:, None]
    states = draw.standard_normal((2, rows, LENGTH, WIDTH)) * (places < lengths)[..., None]
    drafter, target = jnp.asarray(states, jnp.float32).astype(dtype)
    same, following = jnp.asarray(places < lengths), jnp.asarray(places + 1 < lengths)
    ids = jnp.asarray(draw.integers(0, 40, (rows, LENGTH)), jnp.int32)
    return Streams(drafter, target), Truth(target, ids, same, following)


def left_in_a_split(states: Any) -> Stored:
    """The same states as rows of a split, backwards and among others that are not numbers."""
    split = jnp.full((2 * len(states) + 1, *states.shape[1:]), jnp.nan, states.dtype)
    rows = 2 * jnp.arange(len(states), dtype=jnp.int32)[::-1] + 1
    return Stored(split.at[rows].set(states), rows)


def computed(kind: str, rate: float | None, **more: Any) -> Found:
    """One gradient of a lively adapter of a kind, with or without dropout."""
    return step_of(kind, noisy=rate is not None, **more)(rate or 0.0)


def step_of(
    kind: str,
    *,
    noisy: bool = True,
    dtype: Any = jnp.float32,
    rows: int = len(LENGTHS),
    loss: Any = "study",
    stored: bool = False,
) -> Callable[[float], Found]:
    """What computes that gradient at a rate of dropout; one program for all rates.

    With `stored` the states are left in a split of more answers, where a kind reads them there.
    """
    adapter, draw = make(kind, WIDTH), np.random.default_rng(3)
    values = {name: lively_value(name, value.shape, draw) for name, value in named_parameters(adapter).items()}
    assign(adapter, values, "test")
    skeleton, params = Skeleton.split(adapter)
    objective = Objective(name=loss, offset=FACTS[kind].offset)
    head = TokenHead.of(jnp.asarray(draw.standard_normal((48, WIDTH)), dtype), 40)
    given, compared = truth(dtype, rows)
    if stored:
        compared = compared._replace(target=left_in_a_split(compared.target))
        given = Streams(*map(left_in_a_split, given)) if adapter.reads_stored else given
    numbers = jnp.int32(1), jnp.int32(2), jnp.arange(rows, dtype=jnp.int32)

    @jax.jit
    def step(low, given, compared, rate):
        noise = Noise.of(rate, *numbers) if noisy else None

        def value(low):
            tail = skeleton.adapter(low).tail(given, compared.same_mask, noise=noise)
            return objective.of_tail(tail, compared, head, counts(compared).sum(0))

        return jax.value_and_grad(value, has_aux=True)(low)

    def found(rate: float) -> Found:
        (value, tops), slopes = step(lowered(params, jnp.dtype(dtype)), given, compared, jnp.float32(rate))
        return Found(*jax.tree.map(lambda x: np.asarray(x, np.float32), (value, tops, slopes)))

    return found
