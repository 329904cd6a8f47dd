"""The greedy decode loop over shared prefixes: one step as a CUDA graph, or plainly where there is no GPU.

A step emits a token from the state before it, reads that token, and leaves the next state. All it needs to know lies in
memory that stays where it is, so the captured step is replayed without Python in it.
"""

import torch
from torch import Tensor

from torch_bridge.graphs import captured
from torch_bridge.shared_prefix import SharedPrefix
from torch_bridge.vlm import VLM

LOOKS = 8  # steps between two looks at whether all rows have ended: each waits for the GPU


class Decoder:
    """Up to `steps` tokens for every row of a memory, answered from column `first` on."""

    def __init__(self, vlm: VLM, memory: SharedPrefix, steps: int, first: int) -> None:
        """Take the memory for ids [rows, steps] and states [rows, steps, d]."""
        self.steps, self.first = steps, first
        self._vlm, self._memory = vlm, memory
        rows, device = memory.shape.rows, vlm.device
        self._ids = torch.zeros(rows, steps, dtype=torch.int64, device=device)
        self._hidden = torch.zeros(rows, steps, vlm.width, dtype=vlm.dtype, device=device)
        self._state = torch.zeros(rows, vlm.width, dtype=vlm.dtype, device=device)
        self._position = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(self, state: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Answer from the states [rows, d] at the end of the prompts; the first token takes `position` [rows, 1].

        Returns copies of ids [rows, steps] and states [rows, steps, d]; what stands after a row's end is not defined.
        """
        self._begin(state, position)
        looks = LOOKS if self._vlm.device.type == "cuda" else 1
        for step in range(self.steps - 1):
            self._advance()
            if (step + 1) % looks == 0 and bool(self._ended.all()):
                break
        else:
            self._emit()
        return self._ids.clone(), self._hidden.clone()

    def _begin(self, state: Tensor, position: Tensor) -> None:
        self._state.copy_(state)
        self._position.copy_(position)
        self._step.zero_()
        self._ended.zero_()
        self._ids.zero_()
        self._hidden.zero_()

    def _emit(self) -> Tensor:
        token = self._vlm.lm_head(self._state).argmax(-1)
        self._ids.index_copy_(1, self._step, token[:, None])
        self._hidden.index_copy_(1, self._step, self._state[:, None])
        self._ended |= token == self._vlm.eos_id
        return token

    def _one_step(self) -> None:
        token = self._emit()
        inputs = self._vlm.language_model.get_input_embeddings()(token[:, None])
        self._state.copy_(self._memory.read(inputs, self._position, self._step + self.first)[:, 0])
        self._position += 1
        self._step += 1

    def _advance(self) -> None:
        if self._vlm.device.type != "cuda":
            return self._one_step()
        if self._graph is None:
            self._graph = self._captured()
        self._graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        """The step as a graph; what trying it out changes is put back."""
        kept = [x.clone() for x in (self._state, self._position, self._step, self._ended)]
        graph = captured(self._vlm.device, self._one_step)
        for now, before in zip((self._state, self._position, self._step, self._ended), kept, strict=True):
            now.copy_(before)
        return graph
