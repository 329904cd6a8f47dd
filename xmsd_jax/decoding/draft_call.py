"""The compiled call of an adapter that is rolled out live, and its arguments where they stay on the device.

All weights and numbers of a call lie on the device of the target's head before the first one: an iteration sends
nothing there. Matrices have the head's dtype, which is that of the pair's states, since an iteration takes as long as
reading them; vectors stay float32.
"""

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32, UInt32

from xmsd_jax.adapters.interface import POSITIONS, Adapter, CausalAdapter, Streams
from xmsd_jax.adapters.rollout import rollout
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.decoding.ports import Prompt

Rebuild = Callable[[Sequence[jax.Array]], Any]
"""Makes the adapter of its parameters."""


class Sizes(NamedTuple):
    """Positions read in one call, ids drafted, drafter states read from the anchor on.

    `unroll`: the steps of a rollout one after the other in place of a loop.
    """

    portion: int
    gamma: int
    ahead: int
    unroll: bool


class Drawn(NamedTuple):
    """Ids, and the distributions that they were drawn from; None for the likeliest ids."""

    ids: Int32[Array, " g"]
    q: Float[Array, "g v"] | None


def taken_apart(adapter: Adapter, head: TokenHead) -> tuple[Rebuild, list[jax.Array]]:
    """What makes the adapter inside a compiled call, and its parameters: a list, which a call takes in fastest."""
    graph, state = nnx.split(adapter)
    leaves, tree = jax.tree.flatten(state)
    cast = [leaf.astype(head.weight.dtype) if leaf.ndim > 1 else leaf for leaf in leaves]
    return lambda parameters: nnx.merge(graph, jax.tree.unflatten(tree, parameters)), beside(head, cast)


def beside(head: TokenHead, arrays: Any) -> Any:
    """The arrays bound to the head's device, as lent ones are: a call compiles anew for arrays that are not bound."""
    return jax.device_put(arrays, next(iter(head.weight.devices())))


def is_unrolled(head: TokenHead) -> bool:
    """On an accelerator a loop adds launches of its own; on a CPU unrolling compiles 1.6 times longer for nothing."""
    return next(iter(head.weight.devices())).platform != "cpu"


def numbers(head: TokenHead, most: int) -> list[jax.Array]:
    """0..most on the head's device."""
    return beside(head, [np.int32(number) for number in range(most + 1)])


def key_words(seed: int, prompt: Prompt) -> UInt32[np.ndarray, "2"]:
    """The key of an answer's draws."""
    told = f"{prompt.clip.sequence}\n{prompt.clip.name}\n{prompt.question}"
    return np.array([seed % 2**32, zlib.crc32(told.encode())], np.uint32)


def blank(adapter: CausalAdapter, capacity: int, head: TokenHead) -> Any:
    """The empty memory of one answer: keys and values of `capacity` positions."""
    state = jax.ShapeDtypeStruct((1, 1, head.weight.shape[1]), head.weight.dtype)
    both = Streams(*(state if adapter.facts.inputs in (name, "both") else None for name in ("drafter", "target")))
    shapes = jax.eval_shape(adapter.keep, both, jax.ShapeDtypeStruct((1, 1), jnp.int32))
    return beside(head, jax.tree.map(lambda s: jnp.zeros((1, capacity, *s.shape[2:]), s.dtype), shapes))


def rows_at(states: Float[Array, "1 n d"], at: Int32[Array, " m"], count: Any) -> Float[Array, "1 m d"]:
    """The first `count` of the rows `at`; zeros for the others, and for those past the end of the memory.

    Not a slice: that would move back at the end of the memory, in silence. Zeros, because what lies in rows that
    nobody wrote may be NaN.
    """
    wanted = jnp.where(jnp.arange(len(at), dtype=jnp.int32) < count, at, states.shape[1])
    return states.at[:, wanted].get(mode="fill", fill_value=0)


def iterate(
    rebuild: Rebuild,
    sizes: Sizes,
    temperature: float,
    parameters: Sequence[jax.Array],
    head: TokenHead,
    memory: Any,
    streams: Streams,
    start: Int32[Array, ""],
    count: Int32[Array, ""],
    key: UInt32[Array, "2"] | None,
) -> tuple[Any, Drawn]:
    """Read `count` new positions from `start` on, and draft at the last of them.

    Args:
        rebuild: makes the adapter.
        sizes: fixed at compilation.
        temperature: of what is drawn.
        parameters: of the adapter.
        head: of the target.
        memory: keys and values of the positions before `start`; donated.
        streams: states of the answer, row t at position t.
        start: first new position.
        count: 1..`sizes.portion` of them.
        key: of the answer; None takes the likeliest ids.

    Returns:
        The memory with the new positions, and the draft.
    """
    adapter = rebuild(parameters)
    steps = jnp.arange(sizes.portion, dtype=jnp.int32)
    new = Streams(*(None if states is None else rows_at(states, start + steps, count) for states in streams))
    memory = jax.tree.map(
        lambda held, kept: jax.lax.dynamic_update_slice_in_dim(held, kept, start, axis=1),
        memory,
        adapter.keep(new, jnp.minimum(start + steps, POSITIONS - 1)[None]),
    )
    anchor = start + count - 1
    length = next((leaf.shape[1] for leaf in jax.tree.leaves(memory)), 1)
    reach = jnp.arange(sizes.ahead, dtype=jnp.int32)
    predicted = rollout(
        adapter,
        lambda states: states,
        kept=memory,
        kept_mask=(jnp.arange(length) < anchor)[None, None],
        anchors=anchor[None, None],
        target=None if streams.target is None else rows_at(streams.target, anchor[None], 1),
        ahead=None if streams.drafter is None else rows_at(streams.drafter, anchor + reach, sizes.ahead)[:, None],
        gamma=sizes.gamma,
        unroll=sizes.unroll,
    )
    logits = head.logits(predicted[0, 0])
    return memory, _likeliest(logits) if key is None else _draw(logits / temperature, key, anchor)


def compiled(rebuild: Rebuild, sizes: Sizes, temperature: float) -> Callable[..., tuple[Any, Drawn]]:
    """`iterate` from `parameters` on, compiled."""
    return jax.jit(partial(iterate, rebuild, sizes, temperature), donate_argnums=2)


def _likeliest(logits: Float[Array, "g v"]) -> Drawn:
    return Drawn(jnp.argmax(logits, axis=-1).astype(jnp.int32), None)


def _draw(scores: Float[Array, "g v"], key: UInt32[Array, "2"], anchor: Int32[Array, ""]) -> Drawn:
    """Draw an id from the softmax of each row: other draws at each anchor, the same ones whenever it is asked."""
    own = jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), anchor)
    return Drawn(jax.random.categorical(own, scores).astype(jnp.int32), jax.nn.softmax(scores))
