"""Adapters as live drafters: one compiled call an iteration proposes, only its int32 ids come to the host.

The call finds the new states in memory that lies still (a `Window` shows where), extends the keys and values of the
answer so far (their memory is donated), rolls the adapter out on its own predictions, and applies the target's head to
all predicted states at once, so that its weight is read once. Ids are the likeliest or drawn. Fetching them is the one
wait for the device; after it the states may be written again.

Matrices of adapter and head, keys and values have the dtype of the pair's states: an iteration is as long as it takes
to read them. Vectors stay float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmsd_jax.adapters.interface import POSITIONS, Adapter, CausalAdapter, Streams
from xmsd_jax.adapters.rollout import Mode, first_drafts
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.config import ConfigError
from xmsd_jax.decoding.draft_call import (
    Drawn,
    Sizes,
    beside,
    blank,
    compiled,
    is_unrolled,
    key_words,
    numbers,
    rows_at,
    taken_apart,
)
from xmsd_jax.decoding.judge import no_draft
from xmsd_jax.decoding.ports import Context, Draft, DrafterLane, Prompt, Window

WindowMaker = Callable[[int], Window]
"""Makes a window for answers of so many rows, for states of the pair's width."""
Fetch = Callable[[jax.Array], np.ndarray]
"""Waits for ids and copies them to the host."""


class HostWindow:
    """`Window` over numpy states."""

    def __init__(self, rows: int, width: int) -> None:
        """Room for `rows` float32 states."""
        self.rows, self._width = rows, width

    def __call__(self, blocks: Sequence[np.ndarray], start: int, stop: int) -> jax.Array:
        """See `Window`."""
        count = sum(map(len, blocks))
        if count != stop or stop > self.rows:
            raise ValueError(
                f"a window of {self.rows} rows brings a state for each of {stop} tokens, got {count} states: "
                "give all of them, or make it larger"
            )
        whole = np.zeros((1, self.rows, self._width), np.float32)
        whole[0, start:stop] = np.concatenate(blocks)[start:]
        return jax.device_put(whole)


class PrefillDrafter:
    """`Drafter` of phase 1: an offset-0 adapter maps the drafter's first states, the head reads tokens off them.

    In phase 2 it drafts nothing: the drafter's own answer does not run in step with the target's.
    """

    def __init__(
        self,
        adapter: Adapter,
        head: TokenHead,
        *,
        name: str,
        lane: DrafterLane,
        draft_len: int,
        windows: WindowMaker,
        fetch: Fetch = jax.device_get,
    ) -> None:
        """Draft `draft_len` tokens. Raises ConfigError for an adapter of offset 1."""
        if adapter.facts.offset != 0:
            raise ConfigError(f"{name}: predicts the next state (offset 1); in phase 1 an adapter of offset 0 drafts")
        self.name, self.lane = name, lane
        self._count, self._window, self._fetch = draft_len, windows(draft_len), fetch
        rebuild, self._parameters = taken_apart(adapter, head)
        self._head, self._numbers = beside(head, head), numbers(head, draft_len)

        def ids(parameters: Any, head: TokenHead, states: jax.Array, count: jax.Array) -> jax.Array:
            own = rows_at(states, jnp.arange(draft_len, dtype=jnp.int32), count)
            return first_drafts(rebuild(parameters), head, own, count[None]).ids[0]

        self._ids = jax.jit(ids)

    def propose(self, context: Context, gamma: int) -> Draft:
        """Draft in phase 1; `gamma` is at most `draft_len`."""
        if len(context.ids):
            return no_draft()
        _check_asked(self.name, gamma, self._count)
        states = self.lane.own(self._count)
        there = len(states)
        ids = self._ids(self._parameters, self._head, self._window([states], 0, there), self._numbers[there])
        return Draft(ids=self._fetch(ids)[: min(gamma, there)])


class RolloutDrafter:
    """`Drafter` of phase 2: an offset-1 adapter, rolled out on its own predictions from anchor t on.

    At anchor t it reads h[0..t], and of the drafter's lane g[0..t+gamma-1] (own) or s[0..t+1] (synced). Keys and values
    of read positions are kept from call to call of one growing answer; any other context starts anew.

    At a temperature, ids are drawn from softmax(logits / temperature), which is given as `Draft.q`. What is drawn is a
    function of seed, prompt, anchor and states: answers that shall be independent samples need a seed each (`reseed`).
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
        temperature: float = 0.0,
        seed: int = 0,
        fetch: Fetch = jax.device_get,
    ) -> None:
        """Prepare the compiled call.

        Args:
            adapter: of offset 1.
            head: of the target, on the device; its dtype is that of the pair's states.
            name: row name.
            gamma: ids drafted an iteration.
            max_new_tokens: N; with gamma it must fit into the 512 positions.
            windows: makes the windows for states.
            mode: which drafter states are read.
            lane: of the drafter model; None for a kind that does not read it.
            first_rows: states that the first call may bring: 1 and the free tokens of phase 1.
            temperature: 0 takes the likeliest ids.
            seed: of what is drawn.
            fetch: brings the drafted ids to the host.

        Raises:
            ConfigError: an adapter of offset 0, no lane where one is needed, too many positions, or a temperature that
                is negative or not finite.
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
        if not 0 <= temperature < float("inf"):
            raise ConfigError(f"temperature must be 0 (the likeliest ids) or positive and finite, got {temperature}")
        self.name, self.lane = name, lane if reads_drafter else None
        self._gamma, self._mode, self._limit, self._sampled = gamma, mode, max_new_tokens, temperature > 0
        self._portion, self._fetch = max(gamma + 1, first_rows), fetch
        self._target = windows(max_new_tokens) if adapter.facts.inputs != "drafter" else None
        self._drafter = windows(max_new_tokens + 1) if reads_drafter else None
        rebuild, self._parameters = taken_apart(adapter, head)
        self._head, self._numbers = beside(head, head), numbers(head, max(max_new_tokens, self._portion))
        self._memory = blank(adapter, max_new_tokens + self._portion, head)
        ahead = 0 if not reads_drafter else gamma if mode == "own" else min(gamma, 2)
        self._call = compiled(rebuild, Sizes(self._portion, gamma, ahead, is_unrolled(head)), temperature)
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Draw as a drafter made with this seed would."""
        self._seed, self._key = seed, None
        self._prompt: Prompt | None = None
        self._kept: tuple[int, ...] = ()

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
        states = self._lane_states(len(known), context)
        there = self._gamma if states is None or self._mode == "synced" else len(states) - (len(known) - 1)
        if there <= 0:
            return no_draft()
        drawn, count = self._read(context, known, states), min(gamma, there)
        q = None if drawn.q is None else jax.lax.slice_in_dim(drawn.q, 0, count)
        return Draft(ids=self._fetch(drawn.ids)[:count], q=q)

    def _lane_states(self, known: int, context: Context) -> Any:
        """Drafter states from 0 on; none behind the position after the last that can still be emitted."""
        if self.lane is None:
            return None
        if self._mode == "synced":
            return self.lane.synced(context.ids)
        return self.lane.own(min(known - 1 + self._gamma, self._limit + 1))

    def _read(self, context: Context, known: tuple[int, ...], states: Any) -> Drawn:
        """Read what is new up to the anchor, in portions, and draft."""
        goes_on = (
            context.prompt is self._prompt and len(known) > len(self._kept) and known[: len(self._kept)] == self._kept
        )
        start = len(self._kept) if goes_on else 0
        streams = Streams(
            None if self._drafter is None else self._drafter([states], start, len(states)),
            None if self._target is None else self._target(context.hidden, start, len(known)),
        )
        if not goes_on and self._sampled:
            self._key = beside(self._head, key_words(self._seed, context.prompt))
        self._prompt, self._kept = context.prompt, known[:start]
        drawn: Any = None
        while start < len(known):
            count = min(self._portion, len(known) - start)
            place = self._numbers[start], self._numbers[count]
            self._memory, drawn = self._call(self._parameters, self._head, self._memory, streams, *place, self._key)
            start += count
            self._kept = known[:start]  # after each portion: true even if the next one fails
        return drawn


def _check_asked(name: str, gamma: int, most: int) -> None:
    if gamma > most:
        raise ValueError(f"drafter {name!r} was compiled for {most} ids, was asked for {gamma}; make it with that many")
