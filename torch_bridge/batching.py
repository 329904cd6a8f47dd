"""Which clips are answered together: cut inside a shard, planned from free memory, halved where that was too much."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torch_bridge.shared_prefix import PREFIX_TOKENS, SCORES, aligned
from torch_bridge.vlm import VLM

USED = 0.9  # of the free memory; the rest is for what fragments and for the library's workspaces
WITHOUT_GPU = 4  # clips, where there is no memory to plan with
MOST = 32
_IN_WORDS = ("out of memory", "ALLOC_FAILED", "can't allocate memory")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One batch: clips (numbers in the split) with the same questions; `closes` says that its shard is complete."""

    shard: range
    clips: tuple[int, ...]
    questions: tuple[int, ...]
    closes: bool

    def halves(self) -> "tuple[Job, Job]":
        """Its clips in two batches."""
        middle = len(self.clips) // 2
        first = Job(shard=self.shard, clips=self.clips[:middle], questions=self.questions, closes=False)
        return first, Job(shard=self.shard, clips=self.clips[middle:], questions=self.questions, closes=self.closes)


def plan(shard: range, questions: Sequence[int], batch: int) -> list[Job]:
    """Cut the rows of a shard into batches of at most `batch` neighbouring clips that ask the same questions."""
    asked: dict[int, list[int]] = {}
    for row in shard:
        clip, slot = divmod(row, len(questions))
        asked.setdefault(clip, []).append(questions[slot])
    groups: list[tuple[list[int], tuple[int, ...]]] = []
    for clip, own in asked.items():
        if groups and groups[-1][1] == tuple(own) and len(groups[-1][0]) < batch:
            groups[-1][0].append(clip)
        else:
            groups.append(([clip], tuple(own)))
    return [
        Job(shard=shard, clips=tuple(clips), questions=own, closes=number == len(groups) - 1)
        for number, (clips, own) in enumerate(groups)
    ]


def planned_clips(
    readers: Iterable[tuple[VLM, int]], questions: Sequence[str], max_new_tokens: int, shard_rows: int
) -> int:
    """Clips of a batch, planned from the memory that is free on each device now.

    Args:
        readers: each model with the number of its visual tokens.
        questions: asked about every clip.
        max_new_tokens: room of an answer.
        shard_rows: batches do not cross shards, and those of a shard are made equally large.
    """
    whole = max(shard_rows // len(questions), 1)
    needs: dict[torch.device, list[int]] = {}
    for vlm, visual in readers:
        if vlm.device.type != "cuda":
            return min(WITHOUT_GPU, whole)
        each, fixed = clip_bytes(vlm, visual, questions, max_new_tokens), _fixed_bytes(vlm)
        both = needs.setdefault(vlm.device, [0, 0])
        both[0] += each
        both[1] = max(both[1], fixed)
    fits = min(int((USED * _free(device) - fixed) // each) for device, (each, fixed) in needs.items())
    return evenly(max(1, min(fits, MOST)), whole)


def evenly(most: int, clips: int) -> int:
    """The size of the fewest batches of at most `most` that make up `clips`: nearly equal ones, so shapes repeat."""
    return -(-clips // -(-clips // most))


def ran_out(error: BaseException) -> bool:
    """Whether memory did not suffice: also where a library says so in words, or another error came on top of it.

    The end of a CUDA graph's capture fails after an allocation in it did, and its error hides the first one.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(found, RuntimeError) and any(words in str(found) for words in _IN_WORDS):
            return True
        found = found.__cause__ or found.__context__
    return False


def clip_bytes(vlm: VLM, visual: int, questions: Sequence[str], max_new_tokens: int) -> int:
    """Device memory that one clip with its questions takes: keys and values, states, logits."""
    config: Any = vlm.language_model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    number = vlm.dtype.itemsize
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * size * number
    pieces = [vlm.prompt_pieces(question) for question in questions]
    prefix = aligned(len(pieces[0][0]) + visual)
    columns = aligned(max(len(piece[1]) for piece in pieces) + max_new_tokens)
    row = columns * token + 3 * max_new_tokens * vlm.width * number + 2 * vlm.lm_head.out_features * number
    return prefix * token + len(questions) * row


def _fixed_bytes(vlm: VLM) -> int:
    """Activations of a pass over prefixes, and attention weights, whatever the batch."""
    config: Any = vlm.language_model.config
    activations = PREFIX_TOKENS * (3 * config.intermediate_size + 8 * config.hidden_size) * vlm.dtype.itemsize
    return activations + SCORES * (4 + 3 * vlm.dtype.itemsize)


def _free(device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
