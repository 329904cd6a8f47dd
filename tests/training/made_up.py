"""Pairs, head and recipe for the tests of this folder, without a store."""

import jax.numpy as jnp
import numpy as np

from tests.small_store import HEAD, REAL, SEQUENCES, rows_of_store
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.data.batches import Pairs, pair_masks
from xmsd_jax.training.recipe import Recipe


def head() -> TokenHead:
    return TokenHead.of(jnp.asarray(HEAD), REAL)


def pairs(rows: int = 16, *, seed: int = 0, prefix: str = "train", index: bool = True) -> Pairs:
    """Both streams; index pairs, or with `index` False synced ones."""
    fields = rows_of_store(rows, seed)
    target_len = fields["target_len"]
    drafter_len = fields["drafter_len"] if index else target_len
    same, following = pair_masks(target_len, drafter_len, fields["target_ids"].shape[1], index=index)
    return Pairs(
        row=np.arange(rows, dtype=np.int32),
        drafter=fields["drafter_hidden"].astype(np.float32),
        target=fields["target_hidden"].astype(np.float32),
        drafter_len=drafter_len,
        target_len=target_len,
        target_ids=fields["target_ids"],
        question=fields["question"],
        sequence=np.asarray([f"{prefix}_{i * SEQUENCES // rows}" for i in range(rows)]),
        same_mask=same,
        next_mask=following,
    )


def recipe(**changes) -> Recipe:
    short = {"epochs": 3, "batch": 6, "cosine_epochs": 3, "gamma": 3, "prefill_draft_len": 4}
    return Recipe(**{**short, **changes})
