"""One training step of either small model: language loss over packed questions, plus heads that name the facts.

The fact heads (one linear layer on the state that ends the prompt, one on the mean visual token) exist during
training only. They make the towers look at the right things early; the shipped weights do not hold them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaModel, VideoLlavaForConditionalGeneration

from torch_bridge.eventgpt import EventGPTForCausalLM
from torch_bridge.pixels import CLIP_MEAN, CLIP_STD
from torch_bridge.tiny.packing import IGNORE, Blocks, layout


def drafter_visual(model: EventGPTForCausalLM, pixels: Tensor) -> Tensor:
    """Event frames [b, f, 3, y, x] -> event tokens [b, f + s, d]."""
    return model.event_tokens(pixels)


class FactHeads(nn.Module):
    """Several classifications from one vector."""

    def __init__(self, width: int, classes: Sequence[int]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.linear = nn.Linear(width, sum(classes))

    def forward(self, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """states [b, d], labels [b, k] -> (mean loss, accuracy per label [k])."""
        logits = self.linear(states).float().split(self.classes, -1)
        losses = [functional.cross_entropy(x, y) for x, y in zip(logits, labels.unbind(-1), strict=True)]
        right = [(x.argmax(-1) == y).float().mean() for x, y in zip(logits, labels.unbind(-1), strict=True)]
        return torch.stack(losses).mean(), torch.stack(right)


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """The training data of one model on its device: frames uint8[n,f,y,x,3], packed questions, fact labels [n,k]."""

    frames: Tensor
    ids: Tensor
    labels: Tensor
    facts: Tensor
    ask: np.ndarray
    before: Tensor

    @classmethod
    def on(
        cls, device: torch.device, *, frames: np.ndarray, blocks: Blocks, facts: np.ndarray, before: np.ndarray
    ) -> "Material":
        """Move arrays to the device once."""
        return cls(
            frames=torch.from_numpy(frames).to(device),
            ids=torch.from_numpy(blocks.ids).to(device),
            labels=torch.from_numpy(blocks.labels).to(device),
            facts=torch.from_numpy(facts).to(device),
            ask=blocks.ask,
            before=torch.from_numpy(before.astype(np.int64)).to(device),
        )


class Learner(nn.Module):
    """A model with its fact heads; `forward` gives the loss of a batch of clips and some of their questions.

    `visual` turns the model and normalised frames [b, f, 3, y, x] into visual tokens [b, s, d].
    """

    model: VideoLlavaForConditionalGeneration | EventGPTForCausalLM
    language: LlamaModel

    def __init__(
        self,
        model: VideoLlavaForConditionalGeneration | EventGPTForCausalLM,
        visual: Callable[[Any, Tensor], Tensor],
        classes: Sequence[int],
        vocabulary: int,
    ) -> None:
        super().__init__()
        self.model, self.visual, self.vocabulary = model, visual, vocabulary
        self.language = model.model if isinstance(model, EventGPTForCausalLM) else model.model.language_model
        width = self.language.config.hidden_size
        self.ask_heads, self.look_heads = FactHeads(width, classes), FactHeads(width, classes)

    def forward(
        self, data: Material, clips: Tensor, questions: Tensor, *, fact_weight: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (scalar) and what to log. Only rows of real text are trained: the head's padding stays random."""
        look = self.visual(self.model, normalised(data.frames[clips]))
        states, labels, ask = self._states(data, look, clips, questions)
        keep = labels != IGNORE
        logits = functional.linear(states[keep], self.model.lm_head.weight[: self.vocabulary])
        language = functional.cross_entropy(logits.float(), labels[keep])
        facts = data.facts[clips]
        ask_loss, ask_right = self.ask_heads(ask, facts.repeat_interleave(len(questions), 0))
        look_loss, look_right = self.look_heads(look.mean(1), facts)
        right = (logits.argmax(-1) == labels[keep]).float().mean()
        loss = language + fact_weight * (ask_loss + look_loss)
        return loss, {"loss": language, "token_accuracy": right, "facts_asked": ask_right, "facts_seen": look_right}

    def _states(self, data: Material, look: Tensor, clips: Tensor, questions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Post-norm states [b, q, t, d], labels [b, q, t], and the states that end the prompts [b*q, d]."""
        ids, labels = (x[clips][:, questions].long() for x in (data.ids, data.labels))
        batch, asked, length = ids.shape
        table = self.language.get_input_embeddings()
        before = table(data.before).expand(batch, -1, -1).to(look.dtype)
        prefix = torch.cat([before, look], 1)
        mask, positions = layout(prefix.shape[1], asked, length)
        row = torch.cat([prefix, table(ids.flatten(1)).to(look.dtype)], 1)
        row = functional.pad(row, (0, 0, 0, mask.shape[-1] - row.shape[1]))
        out = self.language(
            inputs_embeds=row,
            attention_mask=mask.to(row.device),
            position_ids=positions.to(row.device),
            use_cache=False,
        ).last_hidden_state
        states = out[:, prefix.shape[1] : prefix.shape[1] + asked * length].unflatten(1, (asked, length))
        ends = torch.from_numpy(data.ask).to(row.device)[questions]
        ask = states[:, torch.arange(asked, device=row.device), ends].flatten(0, 1)
        return states, labels, ask


def normalised(frames: Tensor) -> Tensor:
    """uint8[b, f, y, x, 3] -> CLIP-normalised float32[b, f, 3, y, x]."""
    mean, std = (torch.tensor(v, device=frames.device).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (frames.permute(0, 1, 4, 2, 3).float() / 255.0 - mean) / std
