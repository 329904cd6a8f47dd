"""The live target: `xmsd_jax.decoding.ports.Verifier` over one `Session`, with the times of its prefill."""

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from torch_bridge.vlm import VLM, Session, prompt_ids
from xmsd_jax.decoding.ports import LateIds, Prompt, Verified, now


class TorchVerifier:
    """Verifies drafts with a VLM, batch 1: eagerly, or over a static cache (`torch_bridge.static_session`).

    Emitted ids are the argmax over the FULL padded vocabulary: what the target itself says. Drafts are masked by who
    makes them (`vocabulary` is the number of real ids). Each pass waits for the device once, to copy the ids.
    """

    def __init__(self, vlm: VLM, session: Session | None = None) -> None:
        """Verify with `vlm`, which is loaded already, in `session`; None: eagerly."""
        self.vlm, self._device = vlm, vlm.device
        self._session = Session(vlm) if session is None else session
        self._times = {"vision": 0.0, "prefill": 0.0}

    @property
    def eos_ids(self) -> frozenset[int]:
        """The ids that end an answer."""
        return frozenset({self.vlm.eos_id})

    @property
    def vocabulary(self) -> int:
        """The number of real ids; drafts stay below it."""
        return self.vlm.real_vocabulary

    @property
    def times(self) -> Mapping[str, float]:
        """Seconds of the last prefill's parts; vision is 0 when its encoding was given."""
        return dict(self._times)

    @property
    def capacity(self) -> int | None:
        """Tokens after the prompt that the cache holds; None where it grows."""
        return getattr(self._session, "capacity", None)

    def prompt_ids(self, prompt: Prompt) -> np.ndarray:
        """Return the text ids of the prompt, int32[s]."""
        return prompt_ids(self.vlm, prompt.question)

    def encode(self, prompt: Prompt) -> Tensor:
        """Return the visual tokens of the prompt's clip, [s, d], to give to `prefill` for other questions about it."""
        return self._session.encode(prompt.clip)

    def prefill(
        self, prompt: Prompt, draft_ids: LateIds = (), *, logits: bool = False, visual: Tensor | None = None
    ) -> Verified:
        """Start a new answer: read the prompt, and `draft_ids` in the same pass (`ride`); m = len(draft_ids) + 1.

        Args:
            prompt: clip and question.
            draft_ids: ids for the answer's first positions; crop those that turn out wrong. A function that gives them
                is called when the visual tokens are on their way through the model (`Session.prefill`).
            logits: also return the logits.
            visual: an encoding from `encode`, so that it is not computed again (its time is then 0).
        """
        self.synchronize()
        start = perf_counter()
        encoded = self._session.encode(prompt.clip) if visual is None else visual
        self.synchronize()
        seen = perf_counter()
        verified = self._emit(self._session.prefill(prompt.question, encoded, draft_ids), logits)
        self._times = {"vision": seen - start if visual is None else 0.0, "prefill": perf_counter() - seen}
        return verified

    def warm(self, prompt: Prompt) -> None:
        """Read a prompt and do once what the first passes would take longer for, such as capturing graphs."""
        self.prefill(prompt)
        self._session.warm()

    def step(self, token: int, *, logits: bool = False) -> Verified:
        """Read one token; m = 1."""
        return self._emit(self._session.step(token), logits)

    def verify(self, ids: Sequence[int], *, logits: bool = False) -> Verified:
        """Read the ids in one pass; m = len(ids). ValueError on no ids, or ids outside the embedding table."""
        return self._emit(self._session.verify(ids), logits)

    def crop(self, count: int) -> None:
        """Forget the last `count` tokens read. ValueError if more than was read since the prompt."""
        self._session.crop(count)

    def synchronize(self) -> None:
        """Wait for what the session has asked of the device, if the host has not; the drafter's stream goes on."""
        if self._device.type == "cuda" and not self._session.waited:
            torch.cuda.current_stream(self._device).synchronize()

    def _emit(self, hidden: Tensor, logits: bool) -> Verified:
        ids, scores = self._session.emitted(hidden, logits)
        return Verified(ids=ids, hidden=hidden, logits=None if scores is None else scores.float().cpu().numpy())


class SharedVerifier(TorchVerifier):
    """Computes vision and prefill of a prompt once, for as long as the same prompt (the same object) is asked again;
    vision for as long as prompts are about the same clip.

    For comparing decoding alone: ids, states and passes are those of a whole answer, the times of the prefill are not.
    """

    def __init__(self, vlm: VLM, session: Session | None = None) -> None:
        """Verify with `vlm`, as `TorchVerifier`."""
        super().__init__(vlm, session)
        self._prompt: Prompt | None = None
        self._first: Tensor | None = None
        self._encoded: tuple[Any, Tensor] | None = None

    def encode(self, prompt: Prompt) -> Tensor:
        """See `TorchVerifier`; the same tensor for the same clip."""
        if self._encoded is None or self._encoded[0] is not prompt.clip:
            self._encoded = prompt.clip, super().encode(prompt)
        return self._encoded[1]

    def prefill(
        self, prompt: Prompt, draft_ids: LateIds = (), *, logits: bool = False, visual: Tensor | None = None
    ) -> Verified:
        """See `TorchVerifier`; of a prompt that is there already, only `draft_ids` are read, in one pass."""
        first = self._first
        if prompt is not self._prompt or first is None:
            self._prompt = self._first = None  # until the new one is read
            visual = self.encode(prompt) if visual is None else visual
            self._first = first = cast("Tensor", super().prefill(prompt, visual=visual).hidden)
            self._prompt = prompt
        self._times = {"vision": 0.0, "prefill": 0.0}
        return self._emit(self._session.again(first, now(draft_ids)), logits)
