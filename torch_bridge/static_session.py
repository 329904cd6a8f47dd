"""A conversation over a static KV cache: `Session` with passes that are captured once and replayed.

Passes exist for a few lengths; another length is padded to the next one, and what the padding wrote is written over.
Longer ones are read as a piece of prompt.

`exact`: every pass is one length, the longest, plain steps too, and a draft that rides on a prompt is read by such
passes after it. A token's numbers then come from the same kernels of the same shape whoever asks, so speculative ids
are the greedy ids of the same mode, in bfloat16 and 4 bits too. It costs the difference between a pass of that length
and one of the length that is needed, and a pass where a draft rides.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_bridge.few_rows import MOST_TOKENS
from torch_bridge.fused_projections import fuse
from torch_bridge.nf4.linear import choose_products
from torch_bridge.static_look import GraphedLook
from torch_bridge.static_memory import StaticMemory
from torch_bridge.static_passes import FewPass, allow_programs, chunk_pass
from torch_bridge.vlm import VLM, Session, checked_ids, embed
from xmsd_jax.config import ConfigError
from xmsd_jax.data.clips import Clip
from xmsd_jax.decoding.ports import LateIds, SomeIds, now

LENGTHS = (1, 2, 4, 6, 9)


class StaticSession(Session):
    """`Session` (see there) with room for `room` tokens of an answer, `capacity`.

    States [m, d] that it returns are rows of one buffer, `states`: row t is h[t]. They stay until the next prompt,
    unless they are cropped and read over.
    """

    def __init__(
        self,
        vlm: VLM,
        *,
        room: int,
        lengths: Sequence[int] = LENGTHS,
        exact: bool = False,
        compiled: bool | None = None,
        own_products: bool = True,
        keep_visual: bool = False,
    ) -> None:
        """Prepare; memory is taken by the first prompt, and graphs are captured by the first pass of each length.

        Args:
            vlm: the model. On a GPU its parallel projections are fused in place.
            room: tokens of an answer that fit.
            lengths: of captured passes; 1 is always one of them.
            exact: see the module.
            compiled: whether passes are compiled as well; None compiles on a GPU.
            own_products: on a GPU, multiply few rows by kernels of our own. 4-bit layers are replaced in place, where
                the kernel can be built (`torch_bridge.nf4`), and so the same for all sessions of a model; dense ones
                stay (`torch_bridge.few_rows_linear`). Else they are the library's.
            keep_visual: a prompt about the visual tokens of the one before (the same tensor) reads its question alone.
                Every prompt is read in two pieces then, so its states differ from those of a session without this by
                rounding.

        Raises:
            ConfigError: a length that is not in 1..16, no room, or other products than an earlier session's.
        """
        super().__init__(vlm)
        if room < 1 or not all(1 <= length <= MOST_TOKENS for length in lengths):
            raise ConfigError(
                f"engine.lengths: passes of 1 to {MOST_TOKENS} tokens are captured, over a cache with room for 1 token "
                f"or more; got {list(lengths)} and {room}"
            )
        on_gpu = vlm.device.type == "cuda"
        self.capacity, self.exact = room, exact
        self.lengths = (max(lengths),) if exact else tuple(sorted({1, *lengths}))
        self._padded = on_gpu or exact
        self._compiled = on_gpu if compiled is None else compiled
        self._own, self._keeps = own_products, keep_visual
        self._visual: Tensor | None = None  # whose columns are in the cache
        self._memory: StaticMemory | None = None
        self._passes: dict[int, FewPass] = {}
        self._ids = np.empty(0, np.int32)  # that the rows of `states` emit
        self._newest: tuple[Tensor, np.ndarray] | None = None  # what the last verification gave, and the ids it emits
        self._running: tuple[FewPass, slice] | None = None  # a pass on its way, and its rows of `states`
        self._table_rows = int(vlm.language_model.config.vocab_size)
        self._length = 0
        self._pool = torch.cuda.graph_pool_handle() if on_gpu else None
        self._look = GraphedLook(vlm) if on_gpu else vlm.look
        if on_gpu:
            choose_products(vlm.language_model, fused=own_products)
            fuse(vlm.language_model)

    @property
    def length(self) -> int:
        """Tokens in the cache, prompt included; 0 before the first prefill."""
        return self._length

    @property
    def states(self) -> Tensor:
        """The buffer of states, [rows, d]. Raises ValueError before any prompt."""
        return self._held().states

    @torch.inference_mode()
    def encode(self, clip: Clip) -> Tensor:
        """See `Session`; on a GPU pixels are made there, and looked at by one graph."""
        self.waited = False
        return self._look(self.vlm.pixels(clip, self.vlm.device))

    @torch.inference_mode()
    def prefill(self, question: str, visual: Tensor, ids: LateIds = ()) -> Tensor:
        """Start anew: read the prompt with `ids` behind it; h[0..k], [k+1, d].

        `ids` may be a function: it is called when the long part, up to the visual tokens, is on its way, and the
        question is read in a second pass, with the ids. (With `exact` the whole prompt is read first, ids by passes.)
        """
        self._collect()
        self.waited = False
        if self._compiled:
            allow_programs()
        before, after = self.vlm.prompt_pieces(question)
        long, short = torch.cat([embed(self.vlm, before), visual]), embed(self.vlm, after)
        held = self._memory
        memory = self._reserve(len(long) + len(short))
        whole = not self._keeps and (self.exact or not callable(ids))
        start = 0 if whole else len(long)
        if not whole:
            self._read_visual(long, visual, known=memory is held)
        known = () if self.exact else now(ids)
        if len(known) > self.capacity:
            raise self._no_room(0, len(known))
        inputs = torch.cat([long[start:], short, *([embed(self.vlm, known)] if len(known) else [])])
        self._note(0, memory.read_chunk(inputs, start)[len(inputs) - len(known) - 1 :])
        self._length = start + len(inputs)
        if self.exact and len(known := now(ids)):
            self.verify(known)
        return self.states[: len(known) + 1]

    def _read_visual(self, long: Tensor, visual: Tensor, known: bool) -> None:
        """Read a prompt's long part, which the visual tokens end, unless the cache (`known`) holds that of the same."""
        kept, self._visual = known and self._visual is visual, None
        if not kept:
            self._held().read_chunk(long, 0)
        self._visual = visual if self._keeps else None

    def verify(self, ids: SomeIds) -> Tensor:
        """Read m >= 1 tokens; the states after each, [m, d]. Raises ValueError as `Session`, and without room."""
        if self._memory is None or not self._length:
            raise ValueError("a session reads tokens after a prompt; received none yet: call prefill first")
        if len(ids) == 0:
            raise ValueError("a verification reads at least one token (the last accepted one); received no ids")
        if self.read + len(ids) > self.capacity:
            raise self._no_room(self.read, len(ids))
        known, first = checked_ids(self.vlm, ids, self._table_rows), self.read + 1
        step = self.lengths[-1] if self.exact else len(known)
        for start in range(0, len(known), step):
            self._read(known[start : start + step])
        rows = slice(first, first + len(known))
        self._newest = self.states[rows], self._ids[rows]  # while the last pass is on its way
        self._collect()
        return self._newest[0]

    def crop(self, count: int) -> None:
        """Forget the last `count` tokens read. Raises ValueError as `Session`."""
        if not 0 <= count <= self.read:
            raise ValueError(
                f"crop forgets between 0 and the {self.read} tokens read since the prompt; received {count}: "
                "crop only rejected draft tokens, and prefill again for a new prompt"
            )
        self._length -= count

    def emitted(self, hidden: Tensor, logits: bool = False) -> tuple[np.ndarray, Tensor | None]:
        """See `Session`. The ids are those that the passes gave, for rows of `states`."""
        self.waited = self.waited and not logits
        if self._newest is not None and hidden is self._newest[0]:
            return self._newest[1].copy(), self.head(hidden) if logits else None
        first, stray = divmod(hidden.data_ptr() - self.states.data_ptr(), self.states.stride(0) * hidden.itemsize)
        if stray or not 0 <= first <= len(self._ids) - len(hidden):
            return super().emitted(hidden, logits)
        return self._ids[first : first + len(hidden)].copy(), self.head(hidden) if logits else None

    def again(self, first: Tensor, ids: SomeIds) -> Tensor:
        """See `Session`; the states are rows of the buffer."""
        self.crop(self.read)
        if len(ids):
            self.verify(ids)
        return self.states[: len(ids) + 1]

    def warm(self) -> None:
        """Capture all passes; needs a prompt, and room for the longest pass. The answer is left as it was."""
        for count in self.lengths:
            self.verify([0] * count)
            self.crop(count)

    def _read(self, ids: np.ndarray) -> None:
        """Read a piece in one pass; `_collect` waits for it."""
        self._collect()
        self.waited = False
        count, row = len(ids), self.read + 1
        length = next((n for n in self.lengths if n >= count), None) if self._padded else min(count, MOST_TOKENS)
        if length is None or length < count:
            with torch.inference_mode():
                self._note(row, self._held().read_chunk(embed(self.vlm, ids), self._length))
        else:
            running = self._pass(length)
            running.begin(ids, self._length, row)
            self._running = running, slice(row, row + count)
        self._length += count

    def _collect(self) -> None:
        """Wait for the pass that is on its way, if any, and keep the ids that its states emit."""
        if self._running is not None:
            running, rows = self._running
            self._ids[rows] = running.end()[: rows.stop - rows.start]
            self._running, self.waited = None, True

    def _note(self, row: int, states: Tensor) -> None:
        """Keep states that no captured pass has kept, with the ids that they emit."""
        self.states[row : row + len(states)] = states
        self._ids[row : row + len(states)] = super().emitted(states)[0]  # on the host: it has waited
        self.waited = True

    def _pass(self, length: int) -> FewPass:
        if length not in self._passes:
            self._passes[length] = FewPass(self.vlm, self._held(), length, compiled=self._compiled, pool=self._pool)
        return self._passes[length]

    def _held(self) -> StaticMemory:
        if self._memory is None:
            raise ValueError("a session has no memory before its first prompt: call prefill first")
        return self._memory

    def _no_room(self, read: int, count: int) -> ValueError:
        return ValueError(
            f"the cache has room for {self.capacity} tokens after the prompt; {read} are read and {count} more were "
            "given: make it with more room"
        )

    def _reserve(self, prompt: int) -> StaticMemory:
        """Memory for a prompt of so many tokens, of which none is read; another size gives up what is captured."""
        self._length, self._prompt_length = 0, prompt
        spare = self.capacity + max(self.lengths)
        if self._memory is None or self._memory.columns < prompt + spare:
            self._passes.clear()
            self._newest = None
            if self._pool is not None:
                self._pool = torch.cuda.graph_pool_handle()  # that of graphs that are gone must not be used again
            self._memory = None  # first, so that both are never held at once
            with torch.inference_mode(False):  # others may write into it, or lend it
                how: Any = {"fixed": self.exact, "own_products": self._own, "chunk_pass": chunk_pass(self._compiled)}
                llama = self.vlm.language_model
                self._memory = StaticMemory(llama, columns=prompt + spare, rows=spare + 1, **how)
            if self._compiled:
                self._memory.share_programs()
            self._ids = np.zeros(spare + 1, np.int32)
        return self._memory
