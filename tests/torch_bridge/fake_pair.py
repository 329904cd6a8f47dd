"""A pair of random Llamas behind the `VLM` seam, and clips for it: the engine's tests in milliseconds, without weights.

The target's head is padded (64 rows, 60 real ids) and does emit padded ids now and then, which the drafter has not.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from xmsd_jax.data.clip_folder import ClipFolder, ClipFolderWriter
from xmsd_jax.data.clips import Clip
from xmsd_jax.data.events import Events

REAL, PADDED, WIDTH, EOS = 60, 64, 32, 2


class FakeVLM:
    """A random Llama; its visual tokens are a fixed projection of coarse statistics of the clip."""

    def __init__(
        self, name: str, seed: int, vocabulary: int, before: str, dtype: torch.dtype = torch.float32, held: int = 4
    ) -> None:
        """`held`: key-value heads; fewer than the four heads make it a grouped-query Llama."""
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=held, max_position_embeddings=256, initializer_range=0.4,
            bos_token_id=1, eos_token_id=EOS, pad_token_id=0, tie_word_embeddings=False,
        )  # fmt: skip
        generator_state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        self.model = LlamaForCausalLM(config).eval().requires_grad_(False)
        self._projection = torch.randn(8, 3, WIDTH)
        torch.random.set_rng_state(generator_state)
        self.model.to(dtype)
        self._before = before
        self.name, self.eos_id, self.real_vocabulary, self.width = name, EOS, min(vocabulary, REAL), WIDTH
        self.fingerprint = f"{name}-{seed}-{dtype}"
        self.config_dict: Mapping[str, Any] = config.to_dict()
        self.quantisation = "none"
        self.encoded = 0

    @property
    def language_model(self) -> nn.Module:
        return self.model.model

    @property
    def lm_head(self) -> nn.Linear:
        return self.model.lm_head

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype

    @cached_property
    def tokenizer(self) -> Tokenizer:
        words = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(3, PADDED))]
        tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        return tokenizer

    def prompt_pieces(self, question: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids of words by their letters; questions have 5 to 13 words, so batches need padding."""
        before = [1, *map(_word_id, self._before.split())]
        return np.asarray(before, np.int32), np.asarray([*map(_word_id, question.split()), 3], np.int32)

    def pixels(self, clip: Clip, device: torch.device | None = None) -> Tensor:
        frames = clip.video[np.linspace(0, len(clip.video) - 1, 8).astype(int)].mean(axis=(1, 2)) / 64
        counts = np.histogram(clip.events.t, 8, (clip.start_us, clip.stop_us))[0] / 8
        return torch.from_numpy(frames + counts[:, None]).float().to(device or "cpu")

    def look(self, pixels: Tensor) -> Tensor:
        self.encoded += 1
        # Moved once: a graph cannot be captured over a copy from the host.
        self._projection = self._projection.to(self.device, self.dtype)
        return torch.einsum("fc,fcd->fd", pixels.to(self._projection), self._projection)

    def look_all(self, pixels: Sequence[Tensor]) -> Tensor:
        return torch.stack([self.look(one) for one in pixels])

    def encode(self, clip: Clip) -> Tensor:
        return self.look(self.pixels(clip))


def fake_target(**options: Any) -> FakeVLM:
    return FakeVLM("fake-target", 0, PADDED, "USER", **options)


def fake_drafter(**options: Any) -> FakeVLM:
    return FakeVLM("fake-drafter", 1, REAL, "A chat USER", **options)


def fake_clip(number: int) -> Clip:
    draws = np.random.default_rng(number)
    count = 80
    events = Events(
        x=draws.integers(0, 16, count).astype(np.uint16), y=draws.integers(0, 12, count).astype(np.uint16),
        p=draws.integers(0, 2, count).astype(np.uint8), t=np.sort(draws.integers(0, 1_000_000, count)),
        height=12, width=16,
    )  # fmt: skip
    video = (draws.integers(0, 256, (10, 1, 1, 3)) + np.zeros((1, 12, 16, 1))).astype(np.uint8)
    return Clip(
        name=f"clip{number}", sequence=f"drive{number // 2}", events=events, video=video,
        frame_times_us=np.arange(10) * 100_000, start_us=0, stop_us=1_000_000,
    )  # fmt: skip


def fake_clips(path: Path, counts: Mapping[str, int]) -> ClipFolder:
    """A clip folder with so many clips in each split."""
    writer, number = ClipFolderWriter(path, {"source": "fake"}), 0
    for split, count in counts.items():
        for _ in range(count):
            writer.add(split, fake_clip(number))
            number += 1
    return writer.close()


def _word_id(word: str) -> int:
    return 4 + sum(map(ord, word)) % (REAL - 4)
