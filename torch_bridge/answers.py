"""Batched greedy answers of target and drafter, with the states that emitted them.

The questions of a clip share everything up to the question: its visual tokens are encoded once, and the keys and values
of that prefix are computed once and repeated for its questions. Layout of a batch's cache, one line a row:

    [ before | visual | pad .. pad | after | answer ... ]

Padding lies between prefix and question, is masked, and takes no position: a row's positions are those of its own
prompt, and all rows answer in the same columns. So in float32 a row's answer is that of `generate()` on it alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torch_bridge.cache import new_cache
from torch_bridge.vlm import VLM, embed
from xmsd_jax.data.clips import Clip

UNKNOWN_ID = 0  # <unk> of the shared vocabulary: what the drafter reads where the target emits an id it has not


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Greedy answers of b rows, clip by clip and question by question; zero beyond each length.

    `ids` int64[b, t], EOS included when emitted; `lengths` int64[b]; `hidden` [b, t, d]: hidden[:, j] emits ids[:, j].
    """

    ids: Tensor
    lengths: Tensor
    hidden: Tensor


class Batch:
    """The prompts of some clips, each with all its questions, read into one cache by one VLM."""

    def __init__(self, vlm: VLM, clips: Sequence[Clip], questions: Sequence[str]) -> None:
        """Read the prompts.

        Raises:
            ValueError: the clips give different numbers of visual tokens, or the text before them depends on the
                question.
        """
        self._vlm = vlm
        pieces = [vlm.prompt_pieces(question) for question in questions]
        before = pieces[0][0]
        if any(not np.array_equal(piece[0], before) for piece in pieces):
            raise ValueError("the text before the visual tokens must not depend on the question: its cache is shared")
        with torch.inference_mode():
            self._read_prefix(before, _stack([vlm.encode(clip) for clip in clips]), len(questions))
            self._last = self._read_questions([piece[1] for piece in pieces], len(clips))

    def answer(self, max_new_tokens: int) -> Answers:
        """Continue greedily until every row has ended or has `max_new_tokens`; the cache goes back to the prompt."""
        with torch.inference_mode():
            ids, states = self._decode(max_new_tokens)
            if len(ids) > 1:
                self._cache.crop(-(len(ids) - 1))
            return _ended(torch.stack(ids, 1), torch.stack(states, 1), self._vlm.eos_id, max_new_tokens)

    def read_answers(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return s [b, t, d]: the state at position u after reading the prompt and ids[:, :u], in one pass.

        s[:, 0] is the last prompt position; zero from each length on.
        """
        readable = ids.where(ids < self._vlm.language_model.config.vocab_size, UNKNOWN_ID)
        longest = int(lengths.max())
        with torch.inference_mode():
            states = torch.zeros(*ids.shape, self._vlm.width, dtype=self._last.dtype, device=ids.device)
            states[:, 0] = self._last
            if longest > 1:
                inputs = self._vlm.language_model.get_input_embeddings()(readable[:, : longest - 1])
                states[:, 1:longest] = self._forward(inputs)
                self._cache.crop(-(longest - 1))
            return states.masked_fill(~_within(lengths, ids.shape[1])[..., None], 0)

    def _read_prefix(self, before: np.ndarray, visual: Tensor, questions: int) -> None:
        text = embed(self._vlm, before).expand(len(visual), -1, -1)
        prefix = torch.cat([text, visual], dim=1)
        self._cache = new_cache()
        self._mask = torch.ones(prefix.shape[:2], dtype=torch.long, device=prefix.device)
        self._forward(prefix)
        self._cache.batch_repeat_interleave(questions)
        self._mask = self._mask.repeat_interleave(questions, dim=0)

    def _read_questions(self, after: Sequence[np.ndarray], clips: int) -> Tensor:
        width = max(map(len, after))
        ids = np.zeros((len(after), width), np.int64)
        mask = np.zeros((len(after), width), np.int64)
        for row, piece in enumerate(after):
            ids[row, width - len(piece) :] = piece
            mask[row, width - len(piece) :] = 1
        device = self._mask.device
        inputs = embed(self._vlm, ids).reshape(len(after), width, -1).repeat(clips, 1, 1)
        self._mask = torch.cat([self._mask, torch.from_numpy(mask).to(device).repeat(clips, 1)], dim=1)
        return self._forward(inputs)[:, -1]

    def _decode(self, max_new_tokens: int) -> tuple[list[Tensor], list[Tensor]]:
        table = self._vlm.language_model.get_input_embeddings()
        state, ids, states = self._last, [], []
        ended = torch.zeros(len(state), dtype=torch.bool, device=state.device)
        while True:
            token = self._vlm.lm_head(state).argmax(dim=-1)
            ids.append(token)
            states.append(state)
            ended |= token == self._vlm.eos_id
            if len(ids) == max_new_tokens or bool(ended.all()):
                return ids, states
            state = self._forward(table(token[:, None]))[:, 0]

    def _forward(self, inputs: Tensor) -> Tensor:
        """Read [b, m, d] after what the cache holds; columns past the prompt are real in every row."""
        held = self._cache.get_seq_length()
        answered = held + inputs.shape[1] - self._mask.shape[1]
        mask = torch.cat([self._mask, self._mask.new_ones(len(inputs), answered)], dim=1)
        positions = (mask.cumsum(dim=1) - 1)[:, held:]
        out = self._vlm.language_model(
            inputs_embeds=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        return out.last_hidden_state


def _stack(visual: Sequence[Tensor]) -> Tensor:
    if len({len(tokens) for tokens in visual}) > 1:
        raise ValueError(
            f"clips of a batch must give equally many visual tokens; received {[len(tokens) for tokens in visual]}: "
            "use batch 1, or clips with the same number of frames"
        )
    return torch.stack(list(visual))


def _within(lengths: Tensor, positions: int) -> Tensor:
    """bool[b, positions]: True before each length."""
    return torch.arange(positions, device=lengths.device) < lengths[:, None]


def _ended(ids: Tensor, states: Tensor, eos_id: int, max_new_tokens: int) -> Answers:
    """Cut each row after its first EOS and pad to `max_new_tokens` with zeros."""
    rows, count = ids.shape
    stops = (ids == eos_id) | (torch.arange(count, device=ids.device) == count - 1)
    lengths = stops.int().argmax(dim=1) + 1
    keep = _within(lengths, count)
    padded = ids.new_zeros(rows, max_new_tokens)
    padded[:, :count] = ids.masked_fill(~keep, 0)
    hidden = states.new_zeros(rows, max_new_tokens, states.shape[-1])
    hidden[:, :count] = states.masked_fill(~keep[..., None], 0)
    return Answers(ids=padded, lengths=lengths, hidden=hidden)
