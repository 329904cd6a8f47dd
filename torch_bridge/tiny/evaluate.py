"""What the small models say about held-out places, against the ground truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_bridge.eventgpt import load_drafter
from torch_bridge.folders import text_ids
from torch_bridge.tiny.learner import drafter_visual, normalised, target_visual
from torch_bridge.tiny.scenes import Scenes
from torch_bridge.video_llava import load_target
from xmsd_jax.data.answers import read_facts, target_answer, true_facts
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.world import COLOURS
from xmsd_jax.runs import Row


@torch.inference_mode()
def evaluate_model(name: str, folder: Path, scenes: Scenes, *, device: torch.device) -> list[Row]:
    """Share of stated facts that are right, by fact; and what the drafter knows of colours, which it cannot see."""
    if name == "target":
        vlm = load_target(folder, device=str(device))
        looks = _looks(vlm, target_visual, scenes.video)
    else:
        vlm = load_drafter(folder, device=str(device))
        looks = _looks(vlm, drafter_visual, scenes.events)
    rows = fact_rows(name, [answer_all(vlm, looks, question) for question in QUESTIONS], scenes.facts)
    return rows if name == "target" else [*rows, _colour_row(vlm, looks, scenes.facts)]


def _looks(vlm: Any, visual: Any, frames: np.ndarray, batch: int = 128) -> Tensor:
    """Visual tokens [n, s, d]."""
    parts = np.array_split(frames, max(1, len(frames) // batch))
    return torch.cat([visual(vlm.model, normalised(torch.from_numpy(p).to(vlm.device))) for p in parts])


def _prompt(vlm: Any, looks: Tensor, question: str, told: np.ndarray | None = None) -> Tensor:
    """Embeddings of the whole prompt [n, s, d]; `told` [n, t] are answer tokens already given."""
    table = vlm.language_model.get_input_embeddings()
    before, after = (table(torch.from_numpy(p.astype(np.int64)).to(vlm.device)) for p in vlm.prompt_pieces(question))
    parts = [before.expand(len(looks), -1, -1), looks, after.expand(len(looks), -1, -1)]
    if told is not None:
        parts.append(table(torch.from_numpy(told.astype(np.int64)).to(vlm.device)))
    return torch.cat(parts, 1)


def answer_all(vlm: Any, looks: Tensor, question: str, *, limit: int = 80) -> list[str]:
    """Greedy answers of all clips to one question: equal prompt lengths, so no padding."""
    out = vlm.language_model(inputs_embeds=_prompt(vlm, looks, question), use_cache=True)
    told, done = [], torch.zeros(len(looks), dtype=torch.bool, device=vlm.device)
    for _ in range(limit):
        token = vlm.lm_head(out.last_hidden_state[:, -1]).argmax(-1)
        told.append(token)
        done |= token == vlm.eos_id
        if bool(done.all()):
            break
        out = vlm.language_model(input_ids=token[:, None], past_key_values=out.past_key_values, use_cache=True)
    return [_text(vlm, ids) for ids in torch.stack(told, 1).tolist()]


def _text(vlm: Any, ids: Sequence[int]) -> str:
    kept = ids[: ids.index(vlm.eos_id)] if vlm.eos_id in ids else ids
    return vlm.tokenizer.decode(kept).strip()


def fact_rows(name: str, answers: list[list[str]], facts: list[dict[str, Any]]) -> list[Row]:
    """answers[question][clip] -> one row per fact that this model states, and exact answers nowhere."""
    right: dict[str, list[int]] = {}
    for told in answers:
        for text, truth in zip(told, map(true_facts, facts), strict=True):
            for fact, value in read_facts(text).items():
                right.setdefault(fact, []).append(int(value == truth[fact]))
    return [
        Row(row=name, metric=f"fact accuracy: {fact}", value=float(np.mean(hits)), n=len(hits), unit="share")
        for fact, hits in sorted(right.items())
    ]


def _colour_row(drafter: Any, looks: Tensor, facts: list[dict[str, Any]]) -> Row:
    """The drafter is made to finish the target's sentence before the colour: share of right colours (chance 1/6)."""
    words = [" " + colour for colour in COLOURS]
    first = [int(text_ids(drafter.tokenizer, word)[0]) for word in words]
    hits = []
    for clip, truth in enumerate(facts):
        colour = truth["vehicles"][0]["colour"]
        told = target_answer(truth, 0)
        stem = " " + told[: told.index(f" {colour} ")]
        state = drafter.language_model(
            inputs_embeds=_prompt(drafter, looks[clip : clip + 1], QUESTIONS[0], text_ids(drafter.tokenizer, stem)[None])
        ).last_hidden_state[0, -1]
        hits.append(int(drafter.lm_head(state)[first].argmax() == COLOURS.index(colour)))
    return Row(row="drafter", metric="fact accuracy: colour, forced", value=float(np.mean(hits)), n=len(hits), unit="share")
