"""Free prefixes of phase 1, and text drafters at every anchor of stored answers, through their port. Numpy only."""

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xmsd_jax.config import UserError
from xmsd_jax.decoding.ports import Context, Drafter, Prompt, SomeIds
from xmsd_jax.decoding.walk import free_prefix
from xmsd_jax.metrics.acceptance import NO_DRAFT, Anchors, right_lengths


@dataclass(frozen=True, kw_only=True, eq=False)
class FreePrefix:
    """Phase 1 on stored answers: `free` int32[n] right tokens of `drafted` (k); `slack` as in `Anchors`, or None."""

    free: np.ndarray
    drafted: int
    slack: np.ndarray | None = None

    def save(self, path: Path) -> None:
        """Write an npz without objects, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        arrays: dict[str, Any] = {"free": self.free, "drafted": np.int64(self.drafted)}
        if self.slack is not None:
            arrays["slack"] = self.slack
        with part.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> "FreePrefix":
        """Read what `save` wrote; UserError if it is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                found = dict(archive)
            return cls(free=found["free"], drafted=int(found["drafted"]), slack=found.get("slack"))
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            told = " ".join(str(error).split())
            raise UserError(f"{path}: is not a whole file of free prefixes ({told}); evaluate again") from None


def text_anchors(
    drafter: Drafter,
    answers: Sequence[SomeIds],
    prompts: Sequence[Prompt],
    *,
    gamma: int,
    positions: int | None = None,
    prompt_ids: Callable[[Prompt], Any] | None = None,
) -> Anchors:
    """Ask a text drafter at every anchor: `answers` int[L_i] and their prompts; arrays of `positions` columns.

    `prompt_ids` gives the text ids of a prompt, for a drafter that reads them.
    """
    lengths = np.array([len(ids) for ids in answers], np.int32)
    target_ids = np.zeros((len(answers), positions or int(lengths.max())), np.int32)
    drafted = np.full((*target_ids.shape, gamma), NO_DRAFT, np.int32)
    for row, (ids, prompt) in enumerate(zip(answers, prompts, strict=True)):
        ids = np.asarray(ids, np.int32)
        target_ids[row, : len(ids)] = ids
        given = np.asarray([] if prompt_ids is None else prompt_ids(prompt), np.int32)
        for anchor in range(len(ids) - 1):
            context = Context(prompt=prompt, ids=ids[: anchor + 1], prompt_ids=given)
            draft = drafter.propose(context, gamma).ids[:gamma]
            drafted[row, anchor, : len(draft)] = draft
    return Anchors(
        right=right_lengths(drafted, target_ids, lengths),
        gamma=gamma,
        target_len=lengths,
        free=np.zeros(len(answers), np.int32),
        length=(drafted != NO_DRAFT).sum(-1).astype(np.int32),
    )


def text_free(
    drafter: Drafter,
    answers: Sequence[SomeIds],
    prompts: Sequence[Prompt],
    *,
    draft_len: int,
    prompt_ids: Callable[[Prompt], Any] | None = None,
) -> FreePrefix:
    """n_free of a text drafter on each answer. Arguments as in `text_anchors`."""
    free = [
        free_prefix(ids, drafter, prompt, draft_len, prompt_ids=() if prompt_ids is None else prompt_ids(prompt))
        for ids, prompt in zip(answers, prompts, strict=True)
    ]
    return FreePrefix(free=np.array(free, np.int32), drafted=draft_len)


def after(anchors: Anchors, prefix: FreePrefix | None) -> Anchors:
    """The same anchors, with walks that start after a free prefix; None starts at anchor 0."""
    free = np.zeros_like(anchors.free) if prefix is None else prefix.free
    return replace(anchors, free=free)
