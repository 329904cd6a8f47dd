"""From the traces of a ladder to what the page shows: pictures, cards with coloured tokens, stored traces."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from xmsd_jax.data.answers import true_facts
from xmsd_jax.data.events import EventFrames
from xmsd_jax.decoding.ladder import Rung
from xmsd_jax.decoding.ports import Prompt
from xmsd_jax.decoding.trace import Trace
from xmsd_jax.pipeline.figures import Measured
from xmsd_jax.report.gallery import Card, StoredTrace, write_gallery, write_pictures, write_traces

CARDS = 8
"""Answers shown of each set of clips."""


def write_pages(
    run_dir: Path, sets: Sequence[Measured], rungs: Sequence[Rung], *, tokenizer: Any, event_frames: EventFrames
) -> None:
    """Store the traces of every row, and cards of the last row that drafts in the prefill (else the last row)."""
    for rung in rungs:
        stored = [
            _stored(rung.name, prompt, trace)
            for measured in sets
            for prompt, trace in zip(measured.prompts, measured.typical(rung.name), strict=True)
        ]
        write_traces(run_dir, rung.name, stored)
    early = [rung.name for rung in rungs if rung.config and rung.config.prefill_draft_len]
    row = early[-1] if early else rungs[-1].name
    write_gallery(
        run_dir, [card for measured in sets for card in _cards(run_dir, measured, row, tokenizer, event_frames)]
    )


def _cards(run_dir: Path, measured: Measured, row: str, tokenizer: Any, event_frames: EventFrames) -> list[Card]:
    """Cards of evenly spread prompts, those of one clip next to each other."""
    step = max(1, len(measured.prompts) // CARDS)
    answers = measured.typical(row)
    cards = []
    for at in range(0, len(measured.prompts), step)[:CARDS]:
        prompt, trace, reference = measured.prompts[at], answers[at], measured.expected[at]
        clip = prompt.clip
        seen = event_frames.frames(clip.events, start_us=clip.start_us, stop_us=clip.stop_us)
        middle = clip.video[len(clip.video) // 2], seen[len(seen) // 2]
        pictures = write_pictures(run_dir, clip.name, *middle)
        cards.append(
            Card(
                clip=clip.name,
                sequence=clip.sequence,
                source=measured.clips,
                question=prompt.question,
                row=row,
                tokens=tuple(pieces(tokenizer, trace)),
                origins=trace.origins,
                reference=tokenizer.decode(list(reference.ids)),
                iterations=len(trace.iterations),
                truth=_truth(prompt),
                video_png=pictures[0],
                event_png=pictures[1],
            )
        )
    return cards


def pieces(tokenizer: Any, trace: Trace) -> list[str]:
    """The text that each token adds; "" for one that is not shown (EOS), joined they are the answer."""
    texts = [tokenizer.decode(list(trace.ids[:count])) for count in range(len(trace.ids) + 1)]
    return [after[len(before) :] for before, after in pairwise(texts)]


def _truth(prompt: Prompt) -> str:
    if not prompt.clip.facts:
        return ""
    return ", ".join(f"{name}: {value}" for name, value in true_facts(prompt.clip.facts).items())


def _stored(row: str, prompt: Prompt, trace: Trace) -> StoredTrace:
    return StoredTrace(
        row=row,
        clip=prompt.clip.name,
        sequence=prompt.clip.sequence,
        question=prompt.question,
        trace=trace.to_json(),
    )
