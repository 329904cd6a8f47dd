"""Drafting with an adapter: phase-1 drafts of offset-0 kinds, and rollouts on its own predictions of offset-1 kinds.

A rollout at anchor t knows h[0..t] (and drafter states as SEMANTICS allows) and drafts d_1..d_g: the output at t is the
predicted state t+1, whose token is d_1; that state is the target stream's input at t+1, and so on. Keys and values of
true positions are computed once (`CausalAdapter.keep`) and shared by all anchors; each anchor adds its own.
The same functions draft offline, for all anchors of many answers, and live, for one.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from xmsd_jax.adapters.interface import Adapter, CausalAdapter, Seen, Streams
from xmsd_jax.adapters.token_head import TokenHead

Mode = Literal["own", "synced"]
"""Which drafter states a drafter of offset 1 reads: of the drafter's own answer, or after the target's text."""
NO_DRAFT = -1


class Drafted(NamedTuple):
    """`ids` int32[..., g], NO_DRAFT where there is none; `margins`: how far each id leads its runner-up."""

    ids: Int32[Array, "... g"]
    margins: Float[Array, "... g"]


def first_drafts(
    adapter: Adapter, head: TokenHead, drafter: Float[Array, "b g d"], count: Int32[Array, " b"]
) -> Drafted:
    """Phase 1: d_0, d_1, ... from exactly the drafter's first states.

    Args:
        adapter: of offset 0.
        head: of the target.
        drafter: g[0..g-1] of the drafter's own answer.
        count: how many of them are real; there is no draft past them.

    Raises:
        ValueError: an adapter of offset 1, which predicts the position after each that it reads.
    """
    if adapter.facts.offset:
        raise ValueError(f"first drafts need an adapter of offset 0, got {type(adapter).__name__}; use L1 to L4")
    real = jnp.arange(drafter.shape[1]) < count[:, None]
    ids, margins = head.ids_and_margins(adapter(Streams(drafter=drafter), real))
    return Drafted(jnp.where(real, ids, NO_DRAFT), margins)


def rollout(
    adapter: CausalAdapter,
    read: Callable[[Float[Array, "b a d"]], Any],
    *,
    kept: Any,
    kept_mask: Bool[Array, "b a t"],
    anchors: Int32[Array, "b a"],
    target: Float[Array, "b a d"] | None,
    ahead: Float[Array, "b a m d"] | None,
    gamma: int,
    unroll: bool = False,
) -> Any:
    """Predict `gamma` states after each anchor, on the adapter's own predictions, and read something off each.

    Args:
        adapter: of offset 1.
        read: what to make of the predicted states of one step: ids, or the states themselves where a head that is
            applied to all of them at once reads its weight once.
        kept: `adapter.keep` of true positions.
        kept_mask: which of them an anchor sees: those BEFORE it.
        anchors: positions t.
        target: h[t] at each anchor; None for a kind that does not read the target.
        ahead: drafter states at t, t+1, ...: `gamma` of them (mode own), or two, s[t] and s[t+1], of which the second
            is repeated (mode synced); None for a kind that does not read the drafter.
        gamma: states to predict.
        unroll: one step after the other in place of a loop.

    Returns:
        What `read` gives, with the steps as an axis behind the anchors': [b, a, gamma, ...].

    Raises:
        ValueError: another number of drafter states.
    """
    if ahead is not None and ahead.shape[2] not in (gamma, min(gamma, 2)):
        raise ValueError(f"ahead: {gamma} drafter states (own) or 2 (synced) for gamma = {gamma}, got {ahead.shape[2]}")
    blank = jax.tree.map(lambda kv: jnp.zeros((*anchors.shape, gamma, *kv.shape[2:]), kv.dtype), kept)

    def step(carry: tuple[Any, Any], j: Int32[Array, ""]) -> tuple[tuple[Any, Any], Any]:
        rolled, state = carry
        drafter = None if ahead is None else ahead[:, :, jnp.minimum(j, ahead.shape[2] - 1)]
        seen = Seen(kept, kept_mask, rolled, j)
        predicted, own = adapter.advance(Streams(drafter, state), anchors + j, seen)
        rolled = jax.tree.map(lambda buffer, new: buffer.at[:, :, j].set(new), rolled, own)
        return (rolled, None if state is None else predicted), read(predicted)

    _, found = jax.lax.scan(step, (blank, target), jnp.arange(gamma, dtype=jnp.int32), unroll=gamma if unroll else 1)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), found)


def rollout_everywhere(
    adapter: CausalAdapter,
    head: TokenHead,
    streams: Streams,
    drafter_len: Int32[Array, " b"],
    *,
    gamma: int,
    mode: Mode,
) -> Drafted:
    """Draft at every anchor of stored answers: ids and margins [b, t, gamma].

    Anchor t sees h[0..t] and, in mode own, g[0..t+gamma-1] (no draft past the drafter's own answer); in mode synced,
    s[0..t+1]. What lies beyond is in `streams` too, and must not matter: a test perturbs it.
    """
    reads_drafter = adapter.facts.inputs != "target"
    drafter = streams.drafter if reads_drafter else None
    target = streams.target if adapter.facts.inputs != "drafter" else None
    rows, length = (streams.drafter if reads_drafter else streams.target).shape[:2]
    anchors = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (rows, length))
    before = jnp.arange(length) < jnp.arange(length)[:, None]
    drafted = rollout(
        adapter,
        lambda predicted: Drafted(*head.ids_and_margins(predicted)),
        kept=adapter.keep(Streams(drafter, target), anchors),
        kept_mask=jnp.broadcast_to(before, (rows, length, length)),
        anchors=anchors,
        target=target,
        ahead=None if drafter is None else _ahead(drafter, gamma if mode == "own" else min(gamma, 2)),
        gamma=gamma,
    )
    if not reads_drafter or mode == "synced":
        return drafted
    there = anchors[..., None] + jnp.arange(gamma) < drafter_len[:, None, None]
    return Drafted(jnp.where(there, drafted.ids, NO_DRAFT), drafted.margins)


def _ahead(drafter: Float[Array, "b t d"], count: int) -> Float[Array, "b t m d"]:
    """At each position the states from there on, `count` of them; the last one stands in where there are no more."""
    length = drafter.shape[1]
    places = jnp.minimum(jnp.arange(length)[:, None] + jnp.arange(count), length - 1)
    return drafter[:, places]
