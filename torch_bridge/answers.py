"""Batched greedy answers of target and drafter, with the states that emitted them.

The questions of a clip share everything up to the question: its visual tokens are encoded once, and the keys and values
of that prefix are computed and held once (`torch_bridge.shared_prefix`). Columns of a row:

    [ pad .. pad | question | answer ... ]

Padding is masked and takes no position: a row's positions are those of its own prompt, and all rows answer in the same
columns. So in float32 a row's answer is that of `generate()` on it alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from torch_bridge.decode import Decoder
from torch_bridge.graphs import CAPTURING
from torch_bridge.shared_prefix import Shape, SharedPrefix
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


class Workspace:
    """Memory and compiled decode step of one VLM, used again by every batch of the same shape."""

    def __init__(self, vlm: VLM) -> None:
        """Nothing is held before the first batch."""
        self.vlm = vlm
        self._memory: SharedPrefix | None = None
        self._decoder: Decoder | None = None

    def memory(self, shape: Shape) -> SharedPrefix:
        """Memory of a shape; that of another shape is given back first."""
        if self._memory is None or self._memory.shape != shape:
            self.clear()
            self._memory = SharedPrefix(self.vlm.language_model, shape)
        return self._memory

    def decoder(self, steps: int, first: int) -> Decoder:
        """The decode loop over the memory, `steps` tokens from column `first` on."""
        assert self._memory is not None
        if self._decoder is None or (self._decoder.steps, self._decoder.first) != (steps, first):
            self._decoder = Decoder(self.vlm, self._memory, steps, first)
        return self._decoder

    def clear(self) -> None:
        """Give the memory back."""
        self._decoder = self._memory = None
        if self.vlm.device.type == "cuda":
            with CAPTURING:
                torch.cuda.empty_cache()


class Batch:
    """The prompts of some clips, each with all its questions, read into one cache by one VLM."""

    def __init__(
        self,
        vlm: VLM,
        clips: Sequence[Clip],
        questions: Sequence[str],
        *,
        room: int = 64,
        visual: Tensor | None = None,
        share: bool = True,
        workspace: Workspace | None = None,
    ) -> None:
        """Read the prompts.

        Args:
            vlm: the model.
            clips: looked at, unless `visual` gives what they show.
            questions: asked about every clip.
            room: tokens that an answer may have.
            visual: visual tokens [c, s, d], as `encoded` makes them.
            share: whether a clip's questions share its prefix; else every row reads and holds its own.
            workspace: memory that is used again.

        Raises:
            ValueError: the clips show different numbers of frames, or the text before them depends on the question.
        """
        self._vlm, self._room = vlm, room
        pieces = [vlm.prompt_pieces(question) for question in questions]
        if any(not np.array_equal(piece[0], pieces[0][0]) for piece in pieces):
            raise ValueError("the text before the visual tokens must not depend on the question: its cache is shared")
        with torch.inference_mode():
            visual = encoded(vlm, clips) if visual is None else visual
            self._question, mask = _padded([piece[1] for piece in pieces])
            shape = Shape(
                clips=len(visual),
                group=len(questions),
                prefix=len(pieces[0][0]) + visual.shape[1],
                columns=self._question.shape[1] + room,
            )
            if not share:
                visual = visual.repeat_interleave(len(questions), dim=0)
                shape = replace(shape, clips=len(visual), group=1)
            self._workspace = workspace or Workspace(vlm)
            self._memory = self._workspace.memory(shape)
            text = embed(vlm, pieces[0][0]).expand(len(visual), -1, -1)
            self._memory.read_prefix(torch.cat([text, visual], dim=1))
            self._last = self._read_questions(torch.from_numpy(mask).to(vlm.device))

    def answer(self, max_new_tokens: int) -> Answers:
        """Continue greedily until every row has ended or has `max_new_tokens`.

        Raises:
            ValueError: there is no room for so many tokens.
        """
        self._check_room(max_new_tokens)
        with torch.inference_mode():
            decoder = self._workspace.decoder(max_new_tokens, self._width)
            ids, hidden = decoder.run(self._last, self._next)
            return _ended(ids, hidden, self._vlm.eos_id)

    def read_answers(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return s [b, t, d]: the state at position u after reading the prompt and ids[:, :u], in one pass.

        s[:, 0] is the last prompt position; zero from each length on.
        """
        readable = ids.where(ids < self._vlm.language_model.config.vocab_size, UNKNOWN_ID)
        longest = int(lengths.max())
        self._check_room(longest - 1)
        with torch.inference_mode():
            states = torch.zeros(*ids.shape, self._vlm.width, dtype=self._last.dtype, device=ids.device)
            states[:, 0] = self._last
            if longest > 1:
                inputs = self._vlm.language_model.get_input_embeddings()(readable[:, : longest - 1])
                steps = torch.arange(longest - 1, device=ids.device)
                states[:, 1:longest] = self._memory.read(inputs, self._next + steps, self._width + steps)
            return states.masked_fill(~_within(lengths, ids.shape[1])[..., None], 0)

    @property
    def _width(self) -> int:
        """Columns of the questions."""
        return self._question.shape[1]

    def _read_questions(self, mask: Tensor) -> Tensor:
        """Read the questions; returns the state at the end of each, [rows, d]."""
        memory, asked = self._memory, len(mask)
        repeats = memory.shape.rows // asked
        memory.real.fill_(True)
        memory.real[:, : self._width] = mask.repeat(repeats, 1)
        places = (mask.cumsum(1) - 1).clamp(min=0).repeat(repeats, 1) + memory.shape.prefix
        self._next = places[:, -1:] + 1
        inputs = embed(self._vlm, self._question).reshape(asked, self._width, -1).repeat(repeats, 1, 1)
        columns = torch.arange(self._width, device=inputs.device)
        return memory.read(inputs, places, columns)[:, -1].clone()

    def _check_room(self, tokens: int) -> None:
        if tokens > self._room:
            raise ValueError(
                f"a batch has room for {self._room} tokens of an answer, asked for {tokens}; give more room"
            )


def encoded(vlm: VLM, clips: Sequence[Clip]) -> Tensor:
    """What clips show, [c, s, d]."""
    return vlm.look_all([vlm.pixels(clip) for clip in clips])


def _padded(pieces: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Ids int64[q, m] and which of them are real; padding stands before."""
    width = max(map(len, pieces))
    ids, mask = np.zeros((len(pieces), width), np.int64), np.zeros((len(pieces), width), bool)
    for row, piece in enumerate(pieces):
        ids[row, width - len(piece) :] = piece
        mask[row, width - len(piece) :] = True
    return ids, mask


def _within(lengths: Tensor, positions: int) -> Tensor:
    """bool[b, positions]: True before each length."""
    return torch.arange(positions, device=lengths.device) < lengths[:, None]


def _ended(ids: Tensor, states: Tensor, eos_id: int) -> Answers:
    """Cut each row after its first EOS; zeros follow."""
    count = ids.shape[1]
    stops = (ids == eos_id) | (torch.arange(count, device=ids.device) == count - 1)
    lengths = stops.int().argmax(dim=1) + 1
    keep = _within(lengths, count)
    return Answers(ids=ids.masked_fill(~keep, 0), lengths=lengths, hidden=states.masked_fill(~keep[..., None], 0))
