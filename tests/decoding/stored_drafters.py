"""Live adapters over stored answers, for the tests of the proposer: lane and windows, drafts live and offline."""

from collections.abc import Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.adapters.small import (
    MODES,
    VOCABULARY,
    WIDTH,
    drafts,
    head,
    lively,
    streams,
)
from tests.decoding.toy import CLIP
from xmsd_jax.adapters.rollout import NO_DRAFT
from xmsd_jax.decoding.ports import Context, Draft, Prompt, Window
from xmsd_jax.decoding.proposer import HostWindow, RolloutDrafter

ROWS, LENGTH, GAMMA = 3, 14, 4
ANCHORS = range(LENGTH - 1)
OWN_LEN = np.array([LENGTH, 6, 1])
PROMPTS = [Prompt(clip=CLIP, question="what moves?") for _ in range(ROWS)]
IDS = np.random.default_rng(0).integers(0, VOCABULARY, LENGTH).astype(np.int32)
EVERY = pytest.mark.parametrize(("name", "mode"), MODES)


@cache
def stored() -> tuple[np.ndarray, np.ndarray]:
    """States of drafter and target, [ROWS, LENGTH, WIDTH]. All three prompts have the same ids and other states."""
    given = streams(ROWS, LENGTH)
    return np.array(given.drafter), np.array(given.target)


class StoredLane:
    """Both kinds of drafter states from memory; what was asked for is kept."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def begin(self, prompt: Prompt) -> None:
        self.row = PROMPTS.index(prompt)

    def own(self, count: int) -> np.ndarray:
        self.asked.append(count)
        return stored()[0][self.row, : min(count, OWN_LEN[self.row])]

    def synced(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        np.testing.assert_array_equal(ids, IDS[: len(ids)])
        self.asked.append(len(ids))
        return stored()[0][self.row, : len(ids) + 1]

    def take_spans(self) -> list:
        return []


class DirtyWindow(HostWindow):
    """As memory that others write, too: NaN wherever no state was asked for."""

    def __call__(self, blocks: Sequence[np.ndarray], start: int, stop: int) -> jax.Array:
        at = jnp.arange(self.rows)[:, None]
        return jnp.where((at >= start) & (at < stop), super().__call__(blocks, start, stop), jnp.nan)


def windows(rows: int) -> Window:
    return DirtyWindow(rows, WIDTH)


def rollout_drafter(name: str, mode: str, **changes) -> RolloutDrafter:
    settings: dict = {"gamma": GAMMA, "max_new_tokens": LENGTH, "windows": windows, "mode": mode, "lane": StoredLane()}
    of = changes.pop("of", None) or head()
    return RolloutDrafter(lively(name), of, name=name, **{**settings, **changes})


@cache
def usual(name: str, mode: str) -> RolloutDrafter:
    """One for all tests that leave its lane alone: a draft depends on nothing but its context."""
    return rollout_drafter(name, mode)


def context(row: int, anchor: int, *, states: int | None = None) -> Context:
    """Anchor t of a prompt; h[0..t] in blocks, as the loop collects them."""
    hidden = stored()[1][row, : anchor + 1 if states is None else states]
    return Context(prompt=PROMPTS[row], ids=IDS[: anchor + 1], hidden=tuple(np.split(hidden, [1, 2, 6])))


def propose(drafter: RolloutDrafter, row: int, anchor: int, gamma: int = GAMMA) -> list[int]:
    if drafter.lane is not None:
        drafter.lane.begin(PROMPTS[row])
    draft = drafter.propose(context(row, anchor), gamma)
    assert isinstance(draft, Draft)
    assert draft.ids.dtype == np.int32
    return draft.ids.tolist()


@cache
def offline(name: str, mode: str) -> np.ndarray:
    return drafts(name, mode, streams(ROWS, LENGTH), own_len=OWN_LEN, gamma=GAMMA).ids


def wanted(name: str, mode: str, row: int, anchor: int) -> list[int]:
    ids = offline(name, mode)[row, anchor]
    return ids[ids != NO_DRAFT].tolist()
