"""Adapters as live drafters: one compiled call an iteration proposes, only its int32 ids come to the host.

The call takes the new states (a `Window` brings them over in a fixed shape), extends the keys and values of the answer
so far (their memory is donated), rolls the adapter out on its own predictions, applies the target's head, and takes the
argmax. Fetching the ids is the one wait for the device; after it the lent windows may be written again.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xmsd_jax.adapters.interface import POSITIONS, Adapter, CausalAdapter, Streams
from xmsd_jax.adapters.rollout import Mode, first_drafts, rollout
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.config import ConfigError
from xmsd_jax.decoding.judge import no_draft
from xmsd_jax.decoding.ports import Context, Draft, DrafterLane, Prompt, Window

WindowMaker = Callable[[int], Window]
"""Makes a window of so many rows, for states of the pair's width."""


class HostWindow:
    """`Window` over numpy states."""

    def __init__(self, rows: int, width: int) -> None:
        """Room for `rows` float32 states."""
        self._shape = (rows, width)

    def __call__(self, blocks: Sequence[np.ndarray], start: int) -> jax.Array:
        """See `Window`."""
        rows = np.concatenate([np.asarray(block, np.float32) for block in blocks])[start:]
        if len(rows) > self._shape[0]:
            raise ValueError(f"a window of {self._shape[0]} rows was asked for {len(rows)}: read them in portions")
        padded = np.zeros((1, *self._shape), np.float32)
        padded[0, : len(rows)] = rows
        return jnp.array(padded)


class PrefillDrafter:
    """`Drafter` of phase 1: an offset-0 adapter maps the drafter's first states, the head reads tokens off them.

    In phase 2 it drafts nothing: the drafter's own answer does not run in step with the target's.
    """

    def __init__(
        self, adapter: Adapter, head: TokenHead, *, name: str, lane: DrafterLane, draft_len: int, windows: WindowMaker
    ) -> None:
        """Draft `draft_len` tokens. Raises ConfigError for an adapter of offset 1."""
        if adapter.facts.offset != 0:
            raise ConfigError(f"{name}: predicts the next state (offset 1); in phase 1 an adapter of offset 0 drafts")
        self.name, self.lane = name, lane
        self._head, self._count, self._window = head, draft_len, windows(draft_len)
        graph, self._parameters = nnx.split(adapter)

        def ids(parameters: Any, head: TokenHead, states: jax.Array, count: jax.Array) -> jax.Array:
            return first_drafts(nnx.merge(graph, parameters), head, states, count[None]).ids[0]

        self._ids = jax.jit(ids)

    def propose(self, context: Context, gamma: int) -> Draft:
        """Draft in phase 1; `gamma` is at most `draft_len`."""
        if len(context.ids):
            return no_draft()
        _check_asked(self.name, gamma, self._count)
        states = self.lane.own(self._count)
        ids = self._ids(self._parameters, self._head, self._window([states], 0), np.int32(len(states)))
        return Draft(ids=np.asarray(ids)[: min(gamma, len(states))])


class RolloutDrafter:
    """`Drafter` of phase 2: an offset-1 adapter, rolled out on its own predictions from anchor t on.

    At anchor t it reads h[0..t], and of the drafter's lane g[0..t+gamma-1] (own) or s[0..t+1] (synced). Keys and values
    of read positions are kept from call to call of one growing answer; any other context starts anew.
    """

    def __init__(
        self,
        adapter: CausalAdapter,
        head: TokenHead,
        *,
        name: str,
        gamma: int,
        max_new_tokens: int,
        windows: WindowMaker,
        mode: Mode = "synced",
        lane: DrafterLane | None = None,
        first_rows: int = 1,
    ) -> None:
        """Prepare the compiled call.

        Args:
            adapter: of offset 1.
            head: of the target, on the device.
            name: row name.
            gamma: ids drafted an iteration.
            max_new_tokens: N; with gamma it must fit into the 512 positions.
            windows: makes the windows for states.
            mode: which drafter states are read.
            lane: of the drafter model; None for a kind that does not read it.
            first_rows: states that the first call may bring: 1 and the free tokens of phase 1.

        Raises:
            ConfigError: an adapter of offset 0, no lane where one is needed, or too many positions.
        """
        if not isinstance(adapter, CausalAdapter):
            raise ConfigError(f"{name}: is no adapter of offset 1, so it cannot be rolled out; use it in phase 1")
        reads_drafter = adapter.facts.inputs != "target"
        if reads_drafter and lane is None:
            raise ConfigError(f"{name}: reads the drafter's states, but no lane of a drafter model is given")
        if max_new_tokens + gamma > POSITIONS:
            raise ConfigError(
                f"max_new_tokens: {max_new_tokens} and gamma {gamma} need more than the adapter's {POSITIONS} positions"
            )
        self.name, self.lane = name, lane if reads_drafter else None
        self._head, self._gamma, self._mode, self._limit = head, gamma, mode, max_new_tokens
        self._portion = max(gamma + 1, first_rows)
        self._ahead = 0 if not reads_drafter else gamma if mode == "own" else min(gamma, 2)
        self._target = windows(self._portion) if adapter.facts.inputs != "drafter" else None
        self._drafter = windows(self._portion + self._ahead) if reads_drafter else None
        graph, self._parameters = nnx.split(adapter)
        self._blank = _blank(adapter, max_new_tokens + self._portion, head.weight)
        self._memory: Any = self._blank()
        self._prompt: Prompt | None = None
        self._kept: tuple[int, ...] = ()
        self._call = jax.jit(partial(_iterate, graph, gamma, self._ahead), donate_argnums=2)

    def propose(self, context: Context, gamma: int) -> Draft:
        """Draft in phase 2; fewer than `gamma` where the drafter's own answer has ended (mode own)."""
        if not len(context.ids):
            return no_draft()
        _check_asked(self.name, gamma, self._gamma)
        known = tuple(context.ids.tolist())
        if len(known) > self._limit:
            raise ValueError(
                f"drafter {self.name!r} keeps {self._limit} tokens of an answer, was given {len(known)}; "
                "make it with a larger max_new_tokens"
            )
        states = self._lane_states(context)
        there = self._gamma if states is None or self._mode == "synced" else len(states) - (len(known) - 1)
        if there <= 0:
            return no_draft()
        ids = self._read(context, known, states)
        return Draft(ids=ids[: min(gamma, there)])

    def _lane_states(self, context: Context) -> Any:
        if self.lane is None:
            return None
        known = len(context.ids)
        return self.lane.synced(context.ids) if self._mode == "synced" else self.lane.own(known - 1 + self._gamma)

    def _read(self, context: Context, known: tuple[int, ...], states: Any) -> np.ndarray:
        """Read what is new up to the anchor, in portions of the window, and draft."""
        goes_on = (
            context.prompt is self._prompt and len(known) > len(self._kept) and known[: len(self._kept)] == self._kept
        )
        start = len(self._kept) if goes_on else 0
        self._prompt, self._kept = context.prompt, known[:start]  # true after each portion, also if the next one fails
        ids = np.empty(0, np.int32)
        while start < len(known):
            stop = min(start + self._portion, len(known))
            target = None if self._target is None else self._target(_head_of(context.hidden, stop), start)
            reach = stop + max(self._ahead - 1, 0)
            drafter = None if self._drafter is None else self._drafter([states[:reach]], start)
            streams = Streams(drafter, target)
            place = np.array([start, stop - start], np.int32)
            self._memory, drafted = self._call(self._parameters, self._head, self._memory, streams, place)
            ids, start = np.asarray(drafted), stop
            self._kept = known[:stop]
        return ids


def _iterate(
    graph: Any,
    gamma: int,
    ahead: int,
    parameters: Any,
    head: TokenHead,
    memory: Any,
    streams: Streams,
    place: jax.Array,
) -> tuple[Any, jax.Array]:
    """Keep `place` = (start, count) new positions; draft at the last of them. Returns (memory, ids [gamma])."""
    adapter: Any = nnx.merge(graph, parameters)
    start, count = place
    portion = (streams.target if streams.target is not None else streams.drafter[:, : -ahead or None]).shape[1]
    new = Streams(*(None if stream is None else stream[:, :portion] for stream in streams))
    positions = jnp.minimum(start + jnp.arange(portion, dtype=jnp.int32), POSITIONS - 1)[None]
    memory = jax.tree.map(
        lambda held, kept: jax.lax.dynamic_update_slice_in_dim(held, kept, start, axis=1),
        memory,
        adapter.keep(new, positions),
    )
    anchor = start + count - 1
    length = next((leaf.shape[1] for leaf in jax.tree.leaves(memory)), 1)
    target = None if streams.target is None else jax.lax.dynamic_slice_in_dim(streams.target, count - 1, 1, axis=1)
    drafter = streams.drafter
    drafted = rollout(
        adapter,
        head,
        kept=memory,
        kept_mask=(jnp.arange(length) < anchor)[None, None],
        anchors=anchor[None, None],
        target=target,
        ahead=None if drafter is None else jax.lax.dynamic_slice_in_dim(drafter, count - 1, ahead, axis=1)[:, None],
        gamma=gamma,
    )
    return memory, drafted.ids[0, 0]


def _blank(adapter: CausalAdapter, capacity: int, weight: jax.Array) -> Callable[[], Any]:
    """Makes the empty memory of one answer: keys and values of `capacity` positions."""
    state = jax.ShapeDtypeStruct((1, 1, weight.shape[1]), weight.dtype)
    both = Streams(*(state if adapter.facts.inputs in (name, "both") else None for name in ("drafter", "target")))
    shapes = jax.eval_shape(adapter.keep, both, jax.ShapeDtypeStruct((1, 1), jnp.int32))
    return lambda: jax.tree.map(lambda s: jnp.zeros((1, capacity, *s.shape[2:]), s.dtype), shapes)


def _head_of(blocks: Sequence[Any], rows: int) -> list[Any]:
    """The first `rows` rows of the joined blocks."""
    taken, left = [], rows
    for block in blocks:
        if left <= 0:
            break
        taken.append(block if len(block) <= left else block[:left])
        left -= len(taken[-1])
    if left > 0:
        raise ValueError(f"the verifier must give a state for each known token, got {rows - left} for {rows} tokens")
    return taken


def _check_asked(name: str, gamma: int, most: int) -> None:
    if gamma > most:
        raise ValueError(f"drafter {name!r} was compiled for {most} ids, was asked for {gamma}; make it with that many")
