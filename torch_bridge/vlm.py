"""What a video VLM must offer, and the batch-1 engine that reads a prompt and an answer through its language model.

`VLM` is the seam: the target (`torch_bridge.video_llava`) and the drafter (`torch_bridge.eventgpt`) both satisfy it.
`Session` is one conversation over one KV cache. Its states follow SEMANTICS: `h[t]` is the post-final-norm state that
EMITS token t, so `h[0]` belongs to the last prompt position and token t is the *input* of state t+1.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Cache, LlamaModel

from torch_bridge.cache import new_cache
from xmsd_jax.data.clips import Clip
from xmsd_jax.decoding.ports import LateIds, SomeIds, now


@runtime_checkable
class VLM(Protocol):
    """A VLM that stands `encode(clip)` between two pieces of text and continues with a Llama.

    Read-only facts: `width` is d; `eos_id` ends an answer; ids below `real_vocabulary` are text that both models share,
    ids from there to the rows of `lm_head` are padding or placeholders, which a draft must never contain.
    `fingerprint` identifies weights and configuration, `name` is for people, `config_dict` is JSON-able.
    """

    @property
    def language_model(self) -> LlamaModel:
        """The decoder stack; its `last_hidden_state` is after the final norm and goes straight into `lm_head`."""
        ...

    @property
    def lm_head(self) -> nn.Linear:
        """The output head over the full, padded vocabulary."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the shared ids."""
        ...

    @property
    def eos_id(self) -> int:
        """The id that ends an answer; it is kept in the answer."""
        ...

    @property
    def real_vocabulary(self) -> int:
        """The number of text ids."""
        ...

    @property
    def width(self) -> int:
        """The width d of the states."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the language model computes."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the states: float32 or bfloat16."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of weights and configuration."""
        ...

    @property
    def quantisation(self) -> str:
        """The policy by which the weights are quantised, in words; "none" where they are not."""
        ...

    @property
    def name(self) -> str:
        """The model's name in tables."""
        ...

    @property
    def config_dict(self) -> Mapping[str, Any]:
        """The configuration as JSON-able values."""
        ...

    def prompt_pieces(self, question: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the text ids before and after the visual tokens, int32[a] and int32[b], BOS once and first.

        The first piece is the same for every question: the keys and values up to the question are shared.
        """
        ...

    def pixels(self, clip: Clip, device: torch.device | None = None) -> Tensor:
        """Return what the model looks at of a clip: on the host, work for other threads, ahead of the model's; or made
        on `device`, to the same bits.
        """
        ...

    def look(self, pixels: Tensor) -> Tensor:
        """Return what stands at the visual place, [s, d], in the language model's dtype and on its device.

        `pixels` may be on the host or the device, in float32 or the model's dtype.
        """
        ...

    def look_all(self, pixels: Sequence[Tensor]) -> Tensor:
        """Return the same of several clips, [c, s, d]; ValueError where they differ in their number of frames."""
        ...

    def encode(self, clip: Clip) -> Tensor:
        """Return `look(pixels(clip))`."""
        ...


def prompt_ids(vlm: VLM, question: str) -> np.ndarray:
    """Return the text ids of the prompt, int32[s], without a place for the visual tokens."""
    return np.concatenate(vlm.prompt_pieces(question)).astype(np.int32)


def embed(vlm: VLM, ids: SomeIds) -> Tensor:
    """Return the input embeddings of token ids, [t, d].

    Raises:
        ValueError: an id is outside the embedding table (on CUDA that would be a device-side assert).
    """
    table = vlm.language_model.get_input_embeddings()
    checked = torch.from_numpy(checked_ids(vlm, ids, vlm.language_model.config.vocab_size))
    if vlm.device.type == "cuda":
        checked = checked.pin_memory()  # a copy from other memory would wait for all that is queued
    return table(checked.to(vlm.device, non_blocking=True))


def checked_ids(vlm: VLM, ids: SomeIds, rows: int) -> np.ndarray:
    """Return the ids as int64[t] after checking them on the host against the model's table of so many rows."""
    checked = np.asarray(ids, dtype=np.int64).reshape(-1)
    if checked.size and checked.view(np.uint64).max() >= rows:  # a negative id is a huge one
        wrong = checked[(checked < 0) | (checked >= rows)][0]
        raise ValueError(
            f"token ids of {vlm.name} must be in 0..{rows - 1}; received {wrong}: "
            "draft with the ids of the shared vocabulary (mask ids >= real_vocabulary before the argmax)"
        )
    return checked


class Session:
    """One prompt and its answer in one KV cache, batch 1: prefill, then step / verify / crop.

    Every method returns states [m, d] on the model's device and leaves synchronising to the caller.
    """

    waited = False
    """Whether the host has waited for all that this session has asked of the device, so that nobody else has to."""

    def __init__(self, vlm: VLM) -> None:
        """Open a session without a prompt."""
        self.vlm = vlm
        self._cache: Cache | None = None
        self._prompt_length = 0

    @property
    def length(self) -> int:
        """Tokens in the cache, prompt included; 0 before the first prefill."""
        return 0 if self._cache is None else int(self._cache.get_seq_length())

    @property
    def read(self) -> int:
        """Answer tokens read since the prompt."""
        return self.length - self._prompt_length

    @torch.inference_mode()
    def encode(self, clip: Clip) -> Tensor:
        """Return the visual tokens of a clip, [s, d]; they serve every question about it."""
        return self.vlm.encode(clip)

    @torch.inference_mode()
    def prefill(self, question: str, visual: Tensor, ids: LateIds = ()) -> Tensor:
        """Start anew: read the prompt with `ids` appended to it, in one pass, and return h[0..k], [k+1, d].

        k = len(ids): state j is what the model says after the prompt and ids[:j] (`ride` of SEMANTICS phase 1).
        """
        before, after = self.vlm.prompt_pieces(question)
        tail = np.concatenate([after, np.asarray(now(ids), dtype=np.int64).reshape(-1)])
        inputs = torch.cat([embed(self.vlm, before), visual, embed(self.vlm, tail)])
        self._cache = new_cache()
        self._prompt_length = len(inputs) - (len(tail) - len(after))
        return self._forward(inputs)[self._prompt_length - 1 :]

    @torch.inference_mode()
    def verify(self, ids: SomeIds) -> Tensor:
        """Read m >= 1 tokens in one pass and return the m states after each of them, [m, d].

        Raises:
            ValueError: no ids, an id outside the table, or no prompt before.
        """
        if self._cache is None:
            raise ValueError("a session reads tokens after a prompt; received none yet: call prefill first")
        if len(ids) == 0:
            raise ValueError("a verification reads at least one token (the last accepted one); received no ids")
        return self._forward(embed(self.vlm, ids))

    def step(self, token: int) -> Tensor:
        """Read one token and return the state after it, [1, d]."""
        return self.verify([token])

    def crop(self, count: int) -> None:
        """Forget the last `count` tokens read.

        Raises:
            ValueError: count is negative or larger than what was read since the prompt.
        """
        if not 0 <= count <= self.read:
            raise ValueError(
                f"crop forgets between 0 and the {self.read} tokens read since the prompt; received {count}: "
                "crop only rejected draft tokens, and prefill again for a new prompt"
            )
        if count and self._cache is not None:
            self._cache.crop(-count)  # a negative count is what transformers 5.17 and 5.23 both take

    @torch.inference_mode()
    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits [m, v] of states [m, d] over the full padded vocabulary."""
        return self.vlm.lm_head(hidden)

    @torch.inference_mode()
    def emitted(self, hidden: Tensor, logits: bool = False) -> tuple[np.ndarray, Tensor | None]:
        """Return what states [m, d] emit: greedy ids int32[m] over the padded vocabulary, on the host.

        With `logits` [m, v] beside them, else None.
        """
        scores = self.head(hidden)
        return scores.argmax(dim=-1).to(torch.int32).cpu().numpy(), scores if logits else None

    @torch.inference_mode()
    def again(self, first: Tensor, ids: SomeIds) -> Tensor:
        """Forget what was read since the prompt and read `ids` instead; h[0..k], [k+1, d], of which `first` is h[0]."""
        self.crop(self.read)
        return torch.cat([first, self.verify(ids)]) if len(ids) else first

    def warm(self) -> None:
        """Do once what the first passes would take longer for: nothing here."""

    def _forward(self, inputs: Tensor) -> Tensor:
        out = self.vlm.language_model(inputs_embeds=inputs[None], past_key_values=self._cache, use_cache=True)
        return out.last_hidden_state[0]
