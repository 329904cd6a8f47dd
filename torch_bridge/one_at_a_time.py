"""One answer at a time through transformers' `generate(output_hidden_states=True)`: the road that extraction replaces.

It is what the study did, and the baseline of the engine's speed; and how often a batch gives the same ids.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from torch_bridge.answers import Batch
from torch_bridge.eventgpt import EventGPT
from torch_bridge.generate import prompt_row
from torch_bridge.video_llava import Target
from torch_bridge.vlm import VLM, embed
from xmsd_jax.data.clips import Clip


@dataclass(frozen=True, kw_only=True)
class Alone:
    """One answer: `ids` (EOS kept), the states `hidden` [t, d] that emitted them, on the host, and seconds.

    seconds: pixels, vision, `generate`, and copying the states; reading the clip's files is not in it.
    """

    ids: tuple[int, ...]
    hidden: Tensor
    seconds: float


@torch.inference_mode()
def target_alone(target: Target, clip: Clip, question: str, max_new_tokens: int) -> Alone:
    """Answer through `VideoLlavaForConditionalGeneration.generate`, pixels in, all layers' states kept as it does."""
    start = perf_counter()
    ids = torch.from_numpy(prompt_row(target, question))[None].to(target.device)
    pixels = target.pixels(clip)[None].to(target.device, target.dtype)
    model: Any = target.model
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values_videos=pixels,
        **_greedy(target, max_new_tokens),
    )
    return _alone(out, out.sequences[0, ids.shape[1] :], start)


@torch.inference_mode()
def drafter_alone(drafter: EventGPT, clip: Clip, question: str, max_new_tokens: int) -> Alone:
    """Answer through `LlamaForCausalLM.generate` on the same modules, the prompt's embeddings in."""
    start = perf_counter()
    before, after = drafter.prompt_pieces(question)
    inputs = torch.cat([embed(drafter, before), drafter.encode(clip), embed(drafter, after)])[None]
    mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=drafter.device)
    model: Any = as_causal_lm(drafter)
    out = model.generate(inputs_embeds=inputs, attention_mask=mask, **_greedy(drafter, max_new_tokens))
    return _alone(out, out.sequences[0], start)


def as_causal_lm(vlm: VLM) -> LlamaForCausalLM:
    """transformers' own class around the model's Llama and head; no weight is copied."""
    with torch.device("meta"):
        model = LlamaForCausalLM(vlm.language_model.config)
    model.model, model.lm_head = vlm.language_model, vlm.lm_head
    return model.eval()


def agreement(
    vlm: VLM,
    clips: Sequence[Clip],
    questions: Sequence[str],
    asked: Sequence[int],
    alone: Sequence[Alone],
    *,
    per_batch: int,
) -> dict[str, Any]:
    """How far answers of batches are those of `alone`, which answer question asked[i] about clip i.

    Each batch is of `per_batch` clips, with all questions. Greedy ids are equal until a near-tie parts them.

    Returns same_ids, the share of ids before each row's first difference; same_choices, of the ids that both chose
    after equal ones the share that are equal; same_rows; and margins_ulp: at each first difference the batch's logit of
    its own id less that of the other id, in units in the last place of the larger.
    """
    before, total, equal, margins = 0, 0, 0, []
    for start in range(0, len(clips), per_batch):
        stop = min(start + per_batch, len(clips))
        longest = max(len(one.ids) for one in alone[start:stop])
        answers = Batch(vlm, clips[start:stop], questions, room=longest).answer(longest)
        for number in range(start, stop):
            row, ids = (number - start) * len(questions) + asked[number], list(alone[number].ids)
            batched = answers.ids[row, : int(answers.lengths[row])].tolist()
            first = _first_difference(batched, ids)
            before, total, equal = before + first, total + max(len(batched), len(ids)), equal + (batched == ids)
            if first < min(len(batched), len(ids)):
                margins.append(_margin(vlm, answers.hidden[row, first], batched[first], ids[first]))
    rows = {"rows": len(clips), "batch_rows": per_batch * len(questions)}
    shares = {
        "same_ids": before / total,
        "same_choices": before / (before + len(clips) - equal),
        "same_rows": equal / len(clips),
    }
    return {**shares, "margins_ulp": margins, **rows}


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """The place of the first id that differs; the shorter length where there is none."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


@torch.inference_mode()
def _margin(vlm: VLM, hidden: Tensor, chosen: int, other: int) -> float:
    logits = vlm.lm_head(hidden).float()
    top, margin = float(logits[chosen]), float(logits[chosen] - logits[other])
    return margin / (torch.finfo(vlm.dtype).eps * 2.0 ** (math.frexp(top)[1] - 1))


def _greedy(vlm: VLM, max_new_tokens: int) -> dict[str, Any]:
    return {
        "do_sample": False,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": vlm.eos_id,
        "pad_token_id": vlm.eos_id,
        "output_hidden_states": True,
        "return_dict_in_generate": True,
    }


def _alone(out: Any, ids: Tensor, start: float) -> Alone:
    """The last layer's state of every step: what emitted its id."""
    hidden = torch.stack([step[-1][0, -1] for step in out.hidden_states]).cpu()
    told = tuple(np.asarray(ids.cpu()).tolist())
    return Alone(ids=told, hidden=hidden, seconds=perf_counter() - start)
