"""From the traces of a ladder to what the page shows: pictures, cards with coloured tokens, stored traces."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from xmsd_jax.data.answers import true_facts
from xmsd_jax.data.events import EventFrames
from xmsd_jax.decoding.ports import Prompt
from xmsd_jax.decoding.trace import Trace
from xmsd_jax.pipeline.ladder_run import Climbed
from xmsd_jax.report.gallery import Card, StoredTrace, write_gallery, write_pictures, write_traces
from xmsd_jax.runs import Row

CARDS = 8
"""Answers shown of each set of clips."""


def write_pages(
    run_dir: Path, sets: Sequence[Climbed], rows: Sequence[Row], *, tokenizer: Any, event_frames: EventFrames
) -> None:
    """Store the traces of every row, and cards of the one that answers fastest on the first set by `rows`."""
    for rung in sets[0].rungs:
        write_traces(run_dir, rung.name, [one for climbed in sets for one in _traces(climbed, rung.name)])
    drafting = [rung.name for rung in sets[0].rungs if rung.config is not None]
    speeds = {row.row: row.value or 0.0 for row in reversed(rows) if row.metric == "speedup" and row.row in drafting}
    row = max(speeds, key=lambda name: speeds[name], default=sets[0].rungs[-1].name)
    cards = [card for climbed in sets for card in _cards(run_dir, climbed, row, tokenizer, event_frames)]
    write_gallery(run_dir, cards)


def _traces(climbed: Climbed, row: str) -> list[StoredTrace]:
    """The row's typical answers; the timeline stays with the first that was timed whole, which is enough to draw."""
    drawn = int(np.flatnonzero(climbed.timed)[0])
    return [
        _stored(row, climbed.answers.prompts[at], trace if at == drawn else replace(trace, spans=()))
        for at, trace in climbed.typical(row).items()
    ]


def _cards(run_dir: Path, climbed: Climbed, row: str, tokenizer: Any, event_frames: EventFrames) -> list[Card]:
    """Cards of evenly spread prompts, those of one clip next to each other."""
    measured, answers = climbed.answers, climbed.typical(row)
    step = max(1, len(answers) // CARDS)
    cards = []
    for at in list(answers)[::step][:CARDS]:
        prompt, trace, reference = measured.prompts[at], answers[at], measured.references[at]
        clip = prompt.clip
        seen = clip.event_frames(event_frames)
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
