"""What `xmsd benchmark benchmark/extract.yaml` measures of the models: whole extractions, and the parts of one batch.

Times are wall clock with the device synchronised at both ends.
"""

import gc
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from torch_bridge.answers import Batch, Workspace, encoded
from torch_bridge.extraction import Settings, extract_split
from torch_bridge.overlap import Span
from torch_bridge.vlm import VLM
from xmsd_jax.data.clip_folder import ClipFolder
from xmsd_jax.data.clips import Clip
from xmsd_jax.data.store import Store


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Of one whole extraction; `batches`: clips of each batch, in order; `plan`: what the manifest says of batches.

    gap_seconds: the device has nothing queued between a batch and the next one; span_seconds: from the first batch's
    start to the last one's stop, gaps included.
    """

    seconds: float
    rows: int
    target_len: float
    drafter_len: float
    store_bytes: int
    peak_bytes: int
    span_seconds: float
    gap_seconds: float
    batches: tuple[int, ...]
    plan: Mapping[str, Any]


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """Wall clock of a call, with what it left running on the device."""
    _wait(device)
    start = perf_counter()
    call()
    _wait(device)
    return perf_counter() - start


def whole_extraction(
    root: Path, folder: ClipFolder, split: str, target: VLM, drafter: VLM, settings: Settings
) -> Numbers:
    """Time `extract_split` from its call to the finished store, which is counted and removed."""
    shutil.rmtree(root, ignore_errors=True)
    cuda = target.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(target.device)
    spans: list[Span] = []
    seconds = seconds_of(
        lambda: extract_split(root, folder, split, target, drafter, settings, watch=spans), target.device
    )
    gaps = sum(max(0.0, after.gap(before)) for before, after in pairwise(spans))
    store = Store.open(root / split)
    numbers = Numbers(
        seconds=seconds,
        rows=store.rows,
        target_len=float(store.read("target_len").mean()),
        drafter_len=float(store.read("drafter_len").mean()),
        store_bytes=sum(file.stat().st_size for file in (root / split).rglob("*") if file.is_file()),
        peak_bytes=torch.cuda.max_memory_allocated(target.device) if cuda else 0,
        span_seconds=sum(span.seconds for span in spans) + gaps,
        gap_seconds=gaps,
        batches=tuple(len(clips) for note in store.notes().values() for clips in note["batches"]),
        plan=dict(store.manifest.batch),
    )
    shutil.rmtree(root)
    return numbers


class BatchParts:
    """The parts of one batch, one after the other; its memory and compiled steps are used again in every round."""

    def __init__(
        self, target: VLM, drafter: VLM, load: Callable[[], Sequence[Clip]], questions: Sequence[str], tokens: int
    ) -> None:
        """`load` reads the batch's clips; each answer has `tokens` tokens at most."""
        self._spaces = {"target": Workspace(target), "drafter": Workspace(drafter)}
        self._load, self._questions, self._tokens = load, questions, tokens

    def round(self) -> dict[str, float]:
        """Do a batch; returns seconds by part.

        reading: clips and pixels on the host; of each model vision (the tower), prefill (the prompts) and decode (the
        answers); synced: the target's answers read by the drafter. Nothing overlaps here; in an extraction reading, by
        several threads, and writing do.
        """
        times: dict[str, float] = {}
        seen = self._timed(times, "reading", self._pixels)
        answers, batch = [], None
        for which, space in self._spaces.items():
            batch = self._prompts(times, which, space, seen[which])
            answers.append(self._timed(times, f"{which} decode", partial(batch.answer, self._tokens)))
        if batch is not None:
            device = self._spaces["drafter"].vlm.device
            told = answers[0].ids.to(device), answers[0].lengths.to(device)
            self._timed(times, "drafter synced", partial(batch.read_answers, *told))
        return times

    def _pixels(self) -> dict[str, list[Tensor]]:
        clips = self._load()
        return {which: [space.vlm.pixels(clip) for clip in clips] for which, space in self._spaces.items()}

    def _prompts(self, times: dict[str, float], which: str, space: Workspace, seen: Sequence[Tensor]) -> Batch:
        visual = self._timed(times, f"{which} vision", partial(space.vlm.look_all, seen))
        read = partial(Batch, space.vlm, (), self._questions, room=self._tokens, visual=visual, workspace=space)
        return self._timed(times, f"{which} prefill", read)

    def _timed(self, times: dict[str, float], name: str, call: Callable[[], Any]) -> Any:
        kept: list[Any] = []
        times[name] = seconds_of(lambda: kept.append(call()), self._spaces["target"].vlm.device)
        return kept[0]


def prefix_times(
    vlm: VLM, clips: Sequence[Clip], questions: Sequence[str], *, repeats: int, tokens: int
) -> dict[str, list[float]]:
    """Seconds of the prompts of clips x questions, turn by turn: a clip's prefix read once, and once a question.

    The vision part is not in it, nor is making room for the keys and values; both ways are warmed up.
    """
    visual = encoded(vlm, clips)
    ways = {
        name: partial(Batch, vlm, clips, questions, room=tokens, visual=visual, share=share, workspace=Workspace(vlm))
        for name, share in (("shared", True), ("whole", False))
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, read in ways.items():
            took = seconds_of(read, vlm.device)
            if turn:
                times[name].append(took)
    return times


def profiled(call: Callable[[], Any], device: torch.device) -> tuple[str, float]:
    """The kernels of a call as a table, and the seconds that they took on a GPU (0 on a CPU)."""
    table, kernels = profiled_events(call, device)
    return table, sum(seconds for _, seconds, _ in kernels)


def profiled_events(call: Callable[[], Any], device: torch.device) -> tuple[str, list[tuple[str, float, int]]]:
    """The kernels of a call as a table, and each with its seconds and launches on a GPU (none on a CPU)."""
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        call()
        _wait(device)
    events = profiler.key_averages()
    table = events.table(sort_by="self_device_time_total" if cuda else "self_cpu_time_total", row_limit=30)
    on_device = [event for event in events if event.device_type.name == "CUDA"]
    return table, [(event.key, event.self_device_time_total * 1e-6, event.count) for event in on_device]


def release_memory(device: torch.device) -> None:
    """Give back what earlier parts left in the allocator's cache."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def device_name(device: torch.device) -> str:
    """The card's name, or "cpu" with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
