"""The library's own road: transformers `generate()`, greedy, timed part by part. A row that everybody can repeat."""

from time import perf_counter
from typing import Any

import numpy as np
import torch
from transformers.generation.streamers import BaseStreamer

from torch_bridge.video_llava import Target
from xmsd_jax.decoding.ports import Prompt


class _Stopwatch(BaseStreamer):
    """`generate` hands over the prompt, then every token: the second call ends the prefill."""

    def __init__(self) -> None:
        self.calls: list[float] = []

    def put(self, value: Any) -> None:
        """Note the time."""
        self.calls.append(perf_counter())

    def end(self) -> None:
        """Note the end."""
        self.calls.append(perf_counter())


@torch.inference_mode()
def generate(target: Target, prompt: Prompt, max_new_tokens: int) -> tuple[tuple[int, ...], dict[str, float]]:
    """Answer a prompt with `generate()`: ids (EOS kept) and seconds of vision, prefill and decode.

    Vision ends when the projector has run; on a GPU the parts are those of the host's clock, the sum is exact.
    """
    seen: list[float] = []
    model: Any = target.model
    hook = model.model.multi_modal_projector.register_forward_hook(lambda *_: seen.append(perf_counter()))
    watch, start = _Stopwatch(), perf_counter()
    try:
        ids = torch.from_numpy(prompt_row(target, prompt.question))[None].to(target.device)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values_videos=target.pixels(prompt.clip)[None].to(target.device, target.dtype),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=target.eos_id,
            pad_token_id=target.eos_id,
            streamer=watch,
        )
        told = tuple(out[0, ids.shape[1] :].tolist())
    finally:
        hook.remove()
    end = perf_counter()
    return told, {"vision": seen[0] - start, "prefill": watch.calls[1] - seen[0], "decode": end - watch.calls[1]}


def prompt_row(target: Target, question: str) -> np.ndarray:
    """The prompt as the library reads it, int64[s]: text ids with `<video>` once per video token."""
    before, after = target.prompt_pieces(question)
    video = np.full(target.model.config.video_seq_length, target.model.config.video_token_index)
    return np.concatenate([before, video, after]).astype(np.int64)
