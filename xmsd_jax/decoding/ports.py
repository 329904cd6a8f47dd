"""The two ports of speculative decoding: `Drafter` guesses next tokens, `Verifier` is the target that checks them.

Index convention: state `h[t]` EMITS token `y_t`, so `h[0]` belongs to the last prompt position and the token `y_t` is
the input of the step that makes `h[t+1]`. Arrays that cross a port are host numpy where a type says so; `Any` marks an
array that may stay on the device of the one who made it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from xmsd_jax.data.clips import Clip
from xmsd_jax.shapes import TokenIds

SomeIds = Sequence[int] | np.ndarray
"""Token ids as they come: a trace holds tuples, the store gives int32[t]."""
LateIds = SomeIds | Callable[[], SomeIds]
"""Ids, or a function that gives them when they are needed: what makes them runs meanwhile."""


def now(ids: LateIds) -> SomeIds:
    """The ids, of the function if it is one."""
    return ids() if callable(ids) else ids


def _no_ids() -> TokenIds:
    return np.empty(0, np.int32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """One question about one clip. `question_index` is its place in `QUESTIONS`, or -1 for a free question."""

    clip: Clip
    question: str
    question_index: int = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """All that a drafter may see at anchor t.

    `ids` int32[t+1]: the tokens y_0..y_t known so far; EMPTY in phase 1, where the draft starts at position 0.
    `hidden`: blocks `[m_i, d]` on the target's device; joined along their first axis they are h[0..t] (the loop joins
    nothing, so that it needs no array library). Empty in phase 1, and for a verifier that gives no states.
    `prompt_ids` int32[s]: the text ids of the prompt, without visual tokens.
    """

    prompt: Prompt
    ids: TokenIds
    hidden: tuple[Any, ...] = ()
    prompt_ids: Int32[np.ndarray, " s"] = field(default_factory=_no_ids)


@dataclass(frozen=True, kw_only=True, eq=False)
class Draft:
    """Proposed tokens for the positions right after `Context.ids`.

    `ids` int32[g], g <= gamma, may be empty; every id is a real one (below `Verifier.vocabulary`).
    `q` [g, v]: the distribution each id was DRAWN from, or None for a deterministic draft. `np.asarray(q)` must work;
    a `q` narrower than the target's logits has probability 0 on the ids it lacks.
    """

    ids: Int32[np.ndarray, " g"]
    q: Any | None = None


@dataclass(frozen=True, kw_only=True)
class Span:
    """What a lane did from `start` to `stop`, in seconds of the process's clock (`time.perf_counter`)."""

    lane: Literal["target", "drafter", "host"]
    part: str
    start: float
    stop: float


@runtime_checkable
class DrafterLane(Protocol):
    """The drafter model as a source of states, one answer at a time. It runs only as far as it is asked to.

    States are [m, d], on the drafter's device, and stay as they are until the next call.
    """

    def begin(self, prompt: Prompt) -> None:
        """Start a new answer: read the prompt (vision and prefill) and forget the last answer."""
        ...

    def own(self, count: int) -> Any:
        """g[0..count-1] of the drafter's OWN greedy answer; fewer where that answer ends earlier."""
        ...

    def synced(self, ids: SomeIds) -> Any:
        """s[0..t+1] after reading the target's tokens y_0..y_t = `ids`: [len(ids) + 1, d]."""
        ...

    def take_spans(self) -> list[Span]:
        """What was done since the last call of this method."""
        ...


class Window(Protocol):
    """Brings the states of a growing answer to where a drafter computes, in as few shapes as may be."""

    def __call__(self, blocks: Sequence[Any], start: int, stop: int) -> Any:
        """The joined blocks [m_i, d], `stop` rows in all, as a device array [1, rows, d] with row t of them at t.

        Rows from `start` on are needed; those before and behind them may hold anything. Valid until the next call.
        Raises ValueError where the blocks have another number of rows, or more than there is room for.
        """
        ...


@runtime_checkable
class Drafter(Protocol):
    """Proposes tokens. A pure function of the context: it may cache, but the same context gives the same draft.

    Optional attribute `lane: DrafterLane | None`: the drafter model that it reads. The loop lets it begin before the
    target's prefill and collects its spans.
    """

    @property
    def name(self) -> str:
        """Row name in traces and tables."""
        ...

    def propose(self, context: Context, gamma: int) -> Draft:
        """Draft up to `gamma` tokens for positions `len(context.ids)`, +1, ..."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Verified:
    """What m consecutive target states emit.

    `ids` int32[m]: greedy argmax of each state, on the host. `hidden` [m, d]: the states, on the target's device (None
    is allowed). `logits` [m, v]: given when asked for (T > 0, margins), such that `np.asarray(logits, np.float32)`
    works; on a GPU that means already copied to the host as float32.
    """

    ids: Int32[np.ndarray, " m"]
    hidden: Any = None
    logits: Any | None = None


@runtime_checkable
class Verifier(Protocol):
    """The target with its KV cache. One answer at a time: `prefill` starts a new one and forgets the last.

    Optional attribute `capacity: int`: how many tokens after the prompt the cache can hold (a static cache has one).
    The loop cuts drafts to it. It must be at least `max_new_tokens`, and then the cut changes no iteration: see `live`.
    """

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        ...

    @property
    def vocabulary(self) -> int:
        """Number of real ids: drafted ids are below it."""
        ...

    @property
    def times(self) -> Mapping[str, float]:
        """Seconds of the last prefill: `{"vision": ..., "prefill": ...}`."""
        ...

    def prompt_ids(self, prompt: Prompt) -> TokenIds:
        """Text ids of the prompt, int32[s], without visual tokens."""
        ...

    def prefill(self, prompt: Prompt, draft_ids: LateIds = (), *, logits: bool = False) -> Verified:
        """Read the prompt and then `draft_ids` (`ride`): states h[0..k], m = len(draft_ids) + 1. h[0] emits y_0.

        A function that gives the ids is called once, as late as the verifier can.
        """
        ...

    def step(self, token: int, *, logits: bool = False) -> Verified:
        """Read one token: m = 1."""
        ...

    def verify(self, ids: Sequence[int], *, logits: bool = False) -> Verified:
        """Read `ids` in ONE pass: m = len(ids). `[y_t, d_1..d_g]` gives the states t+1..t+g+1."""
        ...

    def crop(self, count: int) -> None:
        """Forget the last `count` tokens read (never a prompt token)."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has done all that this verifier asked of it."""
        ...
