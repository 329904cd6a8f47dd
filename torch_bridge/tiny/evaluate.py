"""What the small models say about held-out places, against the ground truth."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_bridge.eventgpt import EventGPT, load_drafter
from torch_bridge.folders import text_ids
from torch_bridge.tiny.learner import drafter_visual, normalised
from torch_bridge.tiny.scenes import Scenes
from torch_bridge.video_llava import Target, load_target, video_tokens
from torch_bridge.vlm import VLM
from xmsd_jax.data.answers import drafter_answer, read_facts, target_answer, true_facts
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.world import COLOURS
from xmsd_jax.runs import Row


@torch.inference_mode()
def evaluate_model(name: str, folder: Path, scenes: Scenes, *, device: torch.device) -> list[Row]:
    """Share of asked facts that are stated rightly; and what the drafter knows of colours, which it cannot see."""
    if name == "target":
        target = load_target(folder, device=str(device))
        told = answers_of(target, target_looks(target, scenes.video))
        return fact_rows(name, told, asked_of(target_answer, scenes), scenes.facts)
    drafter = load_drafter(folder, device=str(device))
    looks = drafter_looks(drafter, scenes.events)
    told = answers_of(drafter, looks)
    rows = fact_rows(name, told, asked_of(drafter_answer, scenes), scenes.facts)
    return [*rows, borrowed_row(told), forced_colour_row(drafter, looks, scenes.facts)]


def answers_of(vlm: VLM, looks: Tensor) -> list[list[str]]:
    """Greedy answers, [question][clip]."""
    return [answer_all(vlm, looks, question) for question in QUESTIONS]


def asked_of(answer: Callable[[Mapping[str, Any], int], str], scenes: Scenes) -> list[list[str]]:
    """What the model was taught to say, [question][clip]: the facts in it are the asked ones."""
    return [[answer(facts, question) for facts in scenes.facts] for question in range(len(QUESTIONS))]


@torch.inference_mode()
def target_looks(target: Target, video: np.ndarray) -> Tensor:
    """Video tokens [n, s, d] of uint8[n, f, y, x, 3]."""
    return _looks(target, video_tokens, video)


@torch.inference_mode()
def drafter_looks(drafter: EventGPT, events: np.ndarray) -> Tensor:
    """Event tokens [n, f + s, d] of event frames uint8[n, f, y, x, 3]."""
    return _looks(drafter, drafter_visual, events)


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


@torch.inference_mode()
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


def fact_rows(name: str, told: list[list[str]], asked: list[list[str]], facts: list[dict[str, Any]]) -> list[Row]:
    """told, asked [question][clip] -> a row per asked fact: the share stated rightly. A fact left out is wrong."""
    right: dict[str, list[int]] = {}
    for texts, wanted in zip(told, asked, strict=True):
        for text, reference, truth in zip(texts, wanted, map(true_facts, facts), strict=True):
            stated = read_facts(text)
            for fact in read_facts(reference):
                right.setdefault(fact, []).append(int(stated.get(fact) == truth[fact]))
    return [
        Row(row=name, metric=f"fact accuracy: {fact}", value=float(np.mean(hits)), n=len(hits), unit="share")
        for fact, hits in sorted(right.items())
    ]


def borrowed_row(told: list[list[str]]) -> Row:
    """Share of the drafter's answers that name a colour, as only the target's style does."""
    names = ["colour" in read_facts(text) for texts in told for text in texts]
    return Row(
        row="drafter", metric="answers in the target's style", value=float(np.mean(names)), n=len(names), unit="share"
    )


@torch.inference_mode()
def forced_colour_row(drafter: EventGPT, looks: Tensor, facts: list[dict[str, Any]]) -> Row:
    """The drafter is made to finish the target's sentence before the colour: share of right colours (chance 1/6)."""
    words = [" " + colour for colour in COLOURS]
    first = [int(text_ids(drafter.tokenizer, word)[0]) for word in words]
    hits = []
    for clip, truth in enumerate(facts):
        colour = truth["vehicles"][0]["colour"]
        told = target_answer(truth, 0)
        stem = " " + told[: told.index(f" {colour} ")]
        asked = _prompt(drafter, looks[clip : clip + 1], QUESTIONS[0], text_ids(drafter.tokenizer, stem)[None])
        state = drafter.language_model(inputs_embeds=asked).last_hidden_state[0, -1]
        hits.append(int(drafter.lm_head(state)[first].argmax() == COLOURS.index(colour)))
    share = float(np.mean(hits))
    return Row(row="drafter", metric="fact accuracy: colour, forced", value=share, n=len(hits), unit="share")
