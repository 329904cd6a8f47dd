"""The live drafter: `xmsd_jax.decoding.ports.DrafterLane` over one `Session` of the event model.

One cache serves both texts that the drafter may be asked about: its own answer, and the target's. Going from one to the
other, it is cropped to what both have in common and reads the rest.

On a GPU the lane has a stream of its own, which it waits for at the end of every call: what it returns is there for any
stream, and what a caller reads of it must be read before the next call. So a lane may run in a thread beside the target
(`xmsd_jax.decoding.beside`), and neither waits for the other's kernels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from torch_bridge.answers import UNKNOWN_ID
from torch_bridge.vlm import VLM, Session
from xmsd_jax.decoding.ports import Prompt, SomeIds, Span


class TorchLane:
    """The drafter's states, as far as they are asked for.

    `share`: the same prompt again (the same object) keeps vision, prefill and what was read. For comparisons of ids;
    a timed answer must not have it.
    """

    def __init__(self, vlm: VLM, *, max_new_tokens: int, share: bool = False, session: Session | None = None) -> None:
        """Answer with `vlm`, at most `max_new_tokens` of its own, in `session` (None: eagerly)."""
        self._vlm, self._limit, self.share = vlm, max_new_tokens, share
        self._session = Session(vlm) if session is None else session
        self.stream = torch.cuda.Stream(vlm.device) if vlm.device.type == "cuda" else None
        self._prompt: Prompt | None = None
        self._spans: list[Span] = []
        shape = (max_new_tokens + 1, vlm.width)
        self._states = torch.zeros(shape, dtype=vlm.dtype, device=vlm.device)  # after reading _read[:u], at u
        self._own_states = torch.zeros(shape, dtype=vlm.dtype, device=vlm.device)
        self._newest = self._states[:0]  # of the last pass, as the session gave it
        self._read: list[int] = []
        self._own_ids: list[int] = []
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(vlm.device))

    def begin(self, prompt: Prompt) -> None:
        """Read the prompt, unless it may be shared."""
        if self.share and prompt is self._prompt:
            return
        self._prompt, self._read, self._own_ids = prompt, [], []
        with self._span("drafter vision"):
            visual = self._session.encode(prompt.clip)
        with self._span("drafter prefill"):
            self._states[0] = self._session.prefill(prompt.question, visual)[-1]

    def warm(self, prompt: Prompt) -> None:
        """Read a prompt and do once what the first passes would take longer for, on the lane's stream."""
        self._prompt = None
        self.begin(prompt)
        with self._span("warm"):
            self._session.warm()
        self._prompt = None
        self.take_spans()

    @torch.inference_mode()
    def own(self, count: int) -> Tensor:
        """g[0..m-1], m <= count: the answer ends at its EOS or `max_new_tokens`. ValueError before any prompt."""
        self._check(0)
        while len(self._own_ids) < count and not self._ended:
            with self._span("drafter step"):
                place = len(self._own_ids)
                self._seek(self._own_ids)
                self._own_states[place] = self._states[place]
                self._own_ids.append(self._emitted(place))
        return self._own_states[: min(count, len(self._own_ids))]

    def synced(self, ids: SomeIds) -> Tensor:
        """s[0..len(ids)]. Raises ValueError past `max_new_tokens`, and before any prompt."""
        self._check(len(ids))
        known = [int(i) if i < self._vlm.language_model.config.vocab_size else UNKNOWN_ID for i in ids]
        if known != self._read:
            with self._span("sync"):
                self._seek(known)
        return self._states[: len(ids) + 1]

    def take_spans(self) -> list[Span]:
        """Spans since the last call, in order."""
        spans, self._spans = self._spans, []
        return spans

    @property
    def _ended(self) -> bool:
        return len(self._own_ids) == self._limit or self._own_ids[-1:] == [self._vlm.eos_id]

    def _check(self, count: int) -> None:
        if self._prompt is None:
            raise ValueError("a drafter's lane begins with a prompt; received none yet: call begin first")
        if count > self._limit:
            raise ValueError(f"the lane holds {self._limit} tokens; was asked for {count}: raise max_new_tokens")

    @torch.inference_mode()
    def _seek(self, ids: Sequence[int]) -> None:
        """Have read exactly `ids` after the prompt: crop to the common prefix, read the rest in one pass."""
        keep = _common(self._read, ids)
        self._session.crop(len(self._read) - keep)
        self._newest = self._states[:0]
        if len(ids) > keep:
            read = self._session.verify(np.asarray(ids[keep:]))
            self._states[keep + 1 : len(ids) + 1] = read
            self._newest = read[-1:]
        self._read = list(ids)

    def _emitted(self, place: int) -> int:
        """The token that the state at `place`, the last one read, emits; a static session knows it of its last pass."""
        state = self._newest if len(self._newest) else self._states[place : place + 1]
        return int(self._session.emitted(state)[0][0])

    @contextmanager
    def _span(self, part: str) -> Iterator[None]:
        """Work on the lane's stream, waited for; its seconds are kept."""
        start = perf_counter()
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            yield
        if self.stream is not None:
            self.stream.synchronize()
        self._spans.append(Span(lane="drafter", part=part, start=start, stop=perf_counter()))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
