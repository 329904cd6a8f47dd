"""Both models answer a batch: the target's answer, the drafter's own, and the drafter reading the target's."""

import gc
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from torch_bridge.answers import Answers, Batch, Workspace
from torch_bridge.batching import Job, planned_clips, ran_out
from torch_bridge.expand import Expand, expand, is_expanded
from torch_bridge.overlap import Leaving, Span
from torch_bridge.vlm import VLM
from xmsd_jax.config import UserError
from xmsd_jax.data.manifest import States
from xmsd_jax.data.questions import QUESTIONS

T = TypeVar("T")
Pixels = tuple[Any, Any]
"""What target and drafter look at of one clip, as their `pixels` make it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is extracted and how rows are put together; all that numbers depend on is recorded in the store.

    `questions` are indices into QUESTIONS; `batch` is the number of clips that are answered together, each with all its
    questions, None to plan it from free memory; `shard_rows` is what a killed run loses at most. A multiple of the
    number of questions keeps a clip's questions together. `inputs` says what the models see of a clip beyond their own
    configuration; `states` how states lie on disk: in their own dtype, or in 8 bits. `expand`: see
    `torch_bridge.expand`; which models were is noted beside the batches.
    """

    questions: tuple[int, ...] = tuple(range(len(QUESTIONS)))
    max_new_tokens: int = 64
    batch: int | None = 1
    shard_rows: int = 320
    inputs: Mapping[str, Any] = field(default_factory=dict)
    states: States = "native"
    expand: Expand = "auto"


class Pair:
    """Target and drafter, one after the other on one device, or side by side where each has its own."""

    def __init__(self, target: VLM, drafter: VLM, settings: Settings) -> None:
        """Expand 4-bit layers if that is wanted."""
        self.target, self.drafter, self.settings = target, drafter, settings
        for vlm in (target, drafter):
            expand(vlm, settings.expand)
        self.expanded = [which for which in ("target", "drafter") if is_expanded(getattr(self, which))]
        self._spaces = {"target": Workspace(target), "drafter": Workspace(drafter)}
        self._most: int | None = None

    def planned(self, first: Pixels) -> int:
        """Clips of a batch, by the memory that is free now and by what one clip shows; UserError as `answers`."""
        looked = self._tried(lambda: [len(vlm.look(seen)) for vlm, seen in zip(self._both, first, strict=True)])
        if looked is None:
            raise _no_room(self.settings.questions)
        readers = zip(self._both, looked, strict=True)
        questions = [QUESTIONS[index] for index in self.settings.questions]
        return planned_clips(readers, questions, self.settings.max_new_tokens, self.settings.shard_rows)

    def answers(self, job: Job, pixels: Sequence[Pixels], watch: list[Span] | None = None) -> list[tuple[Job, Leaving]]:
        """Answer a batch; in halves, and from then on in batches of that size, where memory does not suffice.

        Raises:
            UserError: it does not suffice for one clip.
        """
        waiting, done = [(job, pixels)], []
        while waiting:
            now, seen = waiting.pop(0)
            if self._most is not None and len(now.clips) > self._most:
                first, second = now.halves()
                waiting[:0] = [(first, seen[: len(first.clips)]), (second, seen[len(first.clips) :])]
                continue
            answered = self._tried(partial(self._answer, now, seen, watch))
            if answered is not None:
                done.append((now, answered))
            elif len(now.clips) == 1:
                raise _no_room(now.questions)
            else:
                self._most = len(now.clips) // 2
                waiting.insert(0, (now, seen))
        return done

    @property
    def _both(self) -> tuple[VLM, VLM]:
        return self.target, self.drafter

    @property
    def _side_by_side(self) -> bool:
        return self.target.device != self.drafter.device

    def _tried(self, call: Callable[[], T]) -> T | None:
        """What a call gives; None where memory did not suffice, and all that it held is given back by then."""
        try:
            with torch.inference_mode():
                return call()
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
        # Here the error is gone, and with it the frames that held tensors; those of another thread form a cycle.
        gc.collect()
        for space in self._spaces.values():
            space.clear()
        return None

    def _answer(self, job: Job, pixels: Sequence[Pixels], watch: list[Span] | None) -> Leaving:
        span = Span(self.target.device)
        if not self._side_by_side:
            answers = self._read("target", job, pixels)[1]
            reader, own = self._read("drafter", job, pixels)
        else:
            with ThreadPoolExecutor(1) as beside:
                drafted = beside.submit(self._read, "drafter", job, pixels)
                answers = self._read("target", job, pixels)[1]
                reader, own = drafted.result()
        ids, lengths = answers.ids.to(self.drafter.device), answers.lengths.to(self.drafter.device)
        fields: dict[str, Tensor] = {
            "drafter_hidden": own.hidden,
            "target_hidden": answers.hidden,
            "drafter_synced": reader.read_answers(ids, lengths),
            "drafter_ids": own.ids.int(),
            "target_ids": answers.ids.int(),
            "drafter_len": own.lengths.int(),
            "target_len": answers.lengths.int(),
        }
        span.stop()
        if watch is not None:
            watch.append(span)
        return Leaving(fields)

    def _read(self, which: str, job: Job, pixels: Sequence[Pixels]) -> tuple[Batch, Answers]:
        vlm, room = getattr(self, which), self.settings.max_new_tokens
        visual = vlm.look_all([seen[which == "drafter"] for seen in pixels])
        questions = [QUESTIONS[index] for index in job.questions]
        batch = Batch(vlm, (), questions, room=room, visual=visual, workspace=self._spaces[which])
        return batch, batch.answer(room)


def _no_room(questions: Sequence[int]) -> UserError:
    return UserError(
        f"batch: one clip with {len(questions)} questions does not fit in the memory of the device; ask fewer "
        "questions at once, shorten max_new_tokens, or quantise the pair"
    )
