"""All questions about a clip in one row: a shared visual prefix, then one block per question that sees only the prefix.

This makes a training step three to four times cheaper than a row per question and changes no state: positions
restart after the prefix and the attention mask keeps the blocks apart.
"""

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from torch_bridge.folders import EOS, token_id

IGNORE = -100


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """All questions of n clips, each a line: prompt after the visual tokens, answer, EOS, padding.

    ids, labels: int16[n, q, t]; ask: int[q], the last position of each prompt.
    """

    ids: np.ndarray
    labels: np.ndarray
    ask: np.ndarray


def pack(prompts: list[np.ndarray], answers: list[list[str]], tokenizer: Tokenizer) -> Blocks:
    """answers[clip][question]; the label at a position is the token that follows it."""
    eos = token_id(tokenizer, EOS)
    texts = [" " + text for row in answers for text in row]
    coded = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    asked = len(prompts)
    longest = max(len(prompts[i % asked]) + len(ids) + 1 for i, ids in enumerate(coded))
    ids = np.zeros((len(coded), longest), np.int16)
    labels = np.full((len(coded), longest), IGNORE, np.int16)
    for row, answer in enumerate(coded):
        prompt = prompts[row % asked]
        line = [*prompt, *answer, eos]
        ids[row, : len(line)] = line
        labels[row, len(prompt) - 1 : len(line) - 1] = line[len(prompt) :]
    shape = (len(answers), asked, longest)
    return Blocks(ids=ids.reshape(shape), labels=labels.reshape(shape), ask=np.asarray([len(p) - 1 for p in prompts]))


def layout(prefix: int, blocks: int, length: int) -> tuple[Tensor, Tensor]:
    """Attention mask bool[1, 1, t, t] (True = may look) and positions int64[1, t], t padded to a multiple of 16."""
    total = prefix + blocks * length
    padded = -(-total // 16) * 16
    block = torch.full((padded,), -1)
    block[prefix:total] = torch.arange(blocks).repeat_interleave(length)
    within = torch.arange(padded)
    mask = (within[:, None] >= within[None, :]) & ((block[:, None] == block[None, :]) | (block[None, :] == -1))
    positions = torch.where(block < 0, within, prefix + (within - prefix) % length)
    positions[total:] = 0
    return mask[None, None], positions[None]
