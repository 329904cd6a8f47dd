"""Small adapters with random parameters everywhere, small heads and small states.

A fresh adapter is a poor subject: up projections are zero, alphas 0.1, and half of what could be wrong would not show.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xmsd_jax.adapters.files import assign, named_parameters
from xmsd_jax.adapters.identity import DrafterIdentity, TargetIdentity
from xmsd_jax.adapters.interface import Adapter, Streams
from xmsd_jax.adapters.kinds import CONTROLS, KINDS, make
from xmsd_jax.adapters.noise import Noise
from xmsd_jax.adapters.rollout import Drafted, Mode, rollout_everywhere
from xmsd_jax.adapters.token_head import TokenHead

WIDTH, LENGTH, ROWS, GAMMA = 32, 10, 3, 4
HEAD_ROWS, VOCABULARY = 48, 40
CONTROL_0, CONTROL_1 = CONTROLS
COUNTS = {
    "L1": 2_113_537,
    "L2": 6_324_227,
    "L3": 16_797_698,
    "L4": 100_714_497,
    "L5": 102_819_841,
    "B1": 102_819_841,
    "L5F": 169_936_897,
}
"""Parameters at width 4096."""
FACTS = {name: kind.facts for name, kind in [*KINDS.items(), *CONTROLS.items()]}
FIRST = [name for name, facts in FACTS.items() if facts.offset == 0]
ROLLED = [name for name, facts in FACTS.items() if facts.offset == 1]
MODES: list[tuple[str, Mode]] = [(name, "own") for name in ROLLED]
MODES += [(name, "synced") for name in ROLLED if FACTS[name].inputs != "target"]


def lively_value(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A random value that makes the parameter matter."""
    noise = rng.standard_normal(shape)
    if name.endswith("kernel"):
        return noise / np.sqrt(shape[0])
    if name.endswith("alpha"):
        return 0.7 + 0.1 * noise
    return 1.0 + 0.2 * noise if name.endswith("scale") else 0.3 * noise


@cache
def lively(name: str, seed: int = 0) -> Adapter:
    """An adapter of a kind, or a control, with random parameters."""
    if name in CONTROLS:
        return DrafterIdentity() if name == CONTROL_0 else TargetIdentity()
    adapter, rng = make(name, WIDTH), np.random.default_rng(seed)
    given = {path: lively_value(path, value.shape, rng) for path, value in named_parameters(adapter).items()}
    assign(adapter, given, "test")
    return adapter


def normal(*shape: int, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def head(seed: int = 2) -> TokenHead:
    return TokenHead.of(normal(HEAD_ROWS, WIDTH, seed=seed), VOCABULARY)


def streams(rows: int = ROWS, length: int = LENGTH, seed: int = 3) -> Streams:
    return Streams(normal(rows, length, WIDTH, seed=seed), normal(rows, length, WIDTH, seed=seed + 1))


def every(rows: int = ROWS, length: int = LENGTH) -> jax.Array:
    return jnp.ones((rows, length), bool)


def noise(rate: float = 0.5, *, seed: int = 0, step: int = 0, rows: int = ROWS) -> Noise:
    """Dropout of a whole batch."""
    numbers = (jnp.asarray(number, jnp.int32) for number in (seed, step))
    return Noise.of(jnp.asarray(rate, jnp.float32), *numbers, jnp.arange(rows, dtype=jnp.int32))


class StateHead(NamedTuple):
    """A head that gives the predicted states in place of margins, for tests of what was rolled out."""

    true: TokenHead

    def ids_and_margins(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.true.ids(hidden), hidden


@cache
def _drafting(name: str, gamma: int, mode: Mode) -> Callable[..., Drafted]:
    graph, params = nnx.split(lively(name))

    def draft(params: nnx.State, head: Any, given: Streams, drafter_len: jax.Array) -> Drafted:
        return rollout_everywhere(nnx.merge(graph, params), head, given, drafter_len, gamma=gamma, mode=mode)

    return partial(jax.jit(draft), params)


def drafts(name: str, mode: Mode, given: Streams, *, own_len=None, gamma: int = GAMMA, to: Any = None) -> Drafted:
    """`rollout_everywhere` of the lively adapter, compiled once for a kind and a mode, as numpy arrays."""
    rows, length = given.drafter.shape[:2]
    drafter_len = jnp.full(rows, length, jnp.int32) if own_len is None else jnp.asarray(own_len, jnp.int32)
    return jax.tree.map(np.asarray, _drafting(name, gamma, mode)(to or head(), given, drafter_len))
