"""Stage `benchmark` of extraction: a pair of random weights at true sizes answers made-up clips into a real store."""

import dataclasses
import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from xmsd_jax import __version__
from xmsd_jax.config import ConfigError, UserError, dump
from xmsd_jax.data.clip_folder import ClipFolder
from xmsd_jax.data.clips_made import SPLIT, MadeClips, write_made_clips
from xmsd_jax.data.made_shape import MadeShape
from xmsd_jax.data.quantisation import Quantisation
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.pipeline.cut_speed import measure_on_one_core
from xmsd_jax.pipeline.extract_rows import result_rows, table
from xmsd_jax.runs import Row, Run, RunFailed, provenance, stage_key, write_results, write_text

LIBRARIES = ("torch", "transformers", "bitsandbytes")
Part = Literal["speed", "single", "prefix", "cut"]


@dataclass(frozen=True, kw_only=True)
class ExtractSpeedConfig:
    """What is timed. Weights are random, clips made up; the ratio of two times is always of one run.

    shape: of both models, by default the public 7B ones. made: the clips. batch: clips answered together, null plans
    them from free memory. expand: see `xmsd extract`. runs: whole extractions after the first one, which is told apart
    (part speed: answers a second, idle time between batches, seconds of each part of a batch). single_answers: through
    `generate()`, each about another clip (part single: the baseline, and how often a batch gives the same ids).
    prefix_clips: whose prompts are read in both ways, `repeats` times turn by turn (part prefix). cut_*: of the made
    recording that one core cuts (part cut: no pair, no GPU). study_answers: what the time is extrapolated to. parts: to
    measure. profile: kernel times of a batch.
    """

    single_answers: int = 6
    shape: MadeShape = field(default_factory=MadeShape)
    quantisation: Quantisation = field(default_factory=lambda: Quantisation(format="nf4"))
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    device: str = "cuda"
    seed: int = 0
    made: MadeClips = field(default_factory=MadeClips)
    questions: tuple[int, ...] = tuple(range(len(QUESTIONS)))
    max_new_tokens: int = 50
    batch: int | None = None
    expand: Literal["auto", "always", "never"] = "auto"
    shard_rows: int = 320
    runs: int = 2
    prefix_clips: int = 2
    repeats: int = 5
    cut_seconds: float = 5.0
    cut_recording_seconds: int = 4
    cut_events_per_second: int = 10_000_000
    study_answers: int = 52080
    parts: tuple[Part, ...] = ("single", "speed", "prefix", "cut")
    profile: bool = True

    def __post_init__(self) -> None:
        """Raise ConfigError for numbers below one, and for more clips than are made."""
        for name in ("max_new_tokens", "shard_rows", "runs", "single_answers", "prefix_clips", "study_answers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"batch: must be at least 1, or null to plan it from free memory, got {self.batch}")
        if self.repeats < 3:
            raise ConfigError(f"repeats: must be at least 3 to show a spread, got {self.repeats}")
        if not self.questions or not set(self.questions) <= set(range(len(QUESTIONS))):
            raise ConfigError(f"questions: indices 0..{len(QUESTIONS) - 1} are needed, got {list(self.questions)}")
        for name in ("single_answers", "prefix_clips"):
            if getattr(self, name) > self.made.count:
                raise ConfigError(f"{name}: {getattr(self, name)} clips are needed, made.count is {self.made.count}")

    @property
    def asked(self) -> tuple[str, ...]:
        """The questions' texts."""
        return tuple(QUESTIONS[number] for number in self.questions)


def run(config: ExtractSpeedConfig, run_dir: Path, fresh: bool = False) -> list[Row]:
    """Measure all parts (finished ones are reused), write results.json after each, print the table.

    Raises:
        UserError: a device that is not there, a shape that the quantisation cannot take, or `cut` alone without h5py.
        RunFailed: a part could not be measured.
    """
    opened = Run.open(run_dir, config)
    bench = Bench(config, opened, fresh)
    measures: dict[Part, Callable[[], Any]] = {
        "speed": bench.speed,
        "single": bench.single,
        "prefix": bench.prefix,
        "cut": bench.cut,
    }
    only_cut = set(config.parts) == {"cut"}
    found: dict[str, Any] = {} if only_cut else {"pair": bench.part("pair", bench.pair_facts)}
    rows: list[Row] = []
    notes: list[str] = []
    failed: list[str] = []
    for part in config.parts:
        try:
            found[part] = bench.part(part, measures[part])
        except UserError as error:
            if part != "cut" or only_cut:
                raise
            notes.append(f"cut is not measured: {error}")
            continue
        except Exception as error:  # out of memory, a kernel's: the other parts are worth measuring all the same
            traceback.print_exc()
            failed.append(f"{part} ({type(error).__name__})")
            continue
        rows = result_rows(found, config)
        write_results(opened.path, rows, provenance() | {"config": dump(config)})
    print("\n".join([table(rows), *notes, f"results: {opened.path}/results.json"]), flush=True)
    if failed:
        raise RunFailed(
            f"not measured: {', '.join(failed)}; the reasons stand above, the same command tries them again"
        )
    return rows


class Bench:
    """The pair and the clips, made when the first part asks for them, and the parts."""

    def __init__(self, config: ExtractSpeedConfig, run: Run, fresh: bool) -> None:
        """Hold what is timed, and where its parts are kept."""
        self.config, self.run, self.fresh = config, run, fresh
        self.build_seconds = 0.0
        self._extracted = False

    def part(self, name: str, measure: Callable[[], Any]) -> Any:
        """A part's numbers, measured or read from the run folder."""
        key = stage_key(dataclasses.replace(self.config, parts=()), __version__, name)
        with self.run.stage(name, key, self.fresh) as stage:
            file = stage.path / "numbers.json"
            if not stage.reused:
                write_text(file, json.dumps(measure(), indent=1) + "\n")
        return json.loads(file.read_text(encoding="utf-8"))

    @cached_property
    def pair(self) -> tuple[Any, Any]:
        """Target and drafter on the device."""
        import torch

        from torch_bridge.made_pair import made_pair

        config = self.config
        if torch.device(config.device).type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"device: {config.device}: torch finds no GPU; set device to cpu and a small shape")
        start = perf_counter()
        made = made_pair(
            config.shape,
            config.quantisation,
            device=config.device,
            dtype=getattr(torch, config.dtype),
            seed=config.seed,
        )
        self.build_seconds = perf_counter() - start
        return made

    @cached_property
    def folder(self) -> ClipFolder:
        """The made clips, in the run folder."""
        path = self.run.path / "clips"
        key = stage_key(self.config.made, __version__)
        with self.run.stage("clips", key, self.fresh) as stage:
            return ClipFolder.open(path) if stage.reused else write_made_clips(path, self.config.made)

    def pair_as_made(self) -> tuple[Any, Any]:
        """The pair with its 4-bit layers as they are (extraction may expand them for good); nothing else is held."""
        from torch_bridge.extract_speed import release_memory

        if self._extracted:
            del self.pair
            self._extracted = False
        release_memory(self.pair[0].device)
        return self.pair

    def pair_to_extract(self) -> tuple[Any, Any]:
        """The pair that extraction has had, or may have."""
        from torch_bridge.extract_speed import release_memory

        self._extracted = True
        release_memory(self.pair[0].device)
        return self.pair

    def clips(self, count: int) -> list[Any]:
        """The first clips, read."""
        return [self.folder.load(entry) for entry in self.folder.clips[:count]]

    def pair_facts(self) -> dict[str, Any]:
        """Device, versions, sizes of the prompts and of the weights."""
        from torch_bridge.extract_speed import device_name
        from torch_bridge.vlm import prompt_ids

        target, drafter = self.pair
        clip = self.clips(1)[0]
        facts = {}
        for which, vlm in (("target", target), ("drafter", drafter)):
            facts[which] = {
                "visual_tokens": len(vlm.encode(clip)),
                "text_tokens": [len(prompt_ids(vlm, question)) for question in self.config.asked],
                "footprint": vlm.footprint.to_json(),
                "bytes": vlm.footprint.total,
                "quantisation": vlm.quantisation,
            }
        installed = provenance()["versions"]
        return {
            **facts,
            "build_seconds": self.build_seconds,
            "device": device_name(target.device),
            "versions": {name: installed[name] for name in LIBRARIES if name in installed},
        }

    def speed(self) -> dict[str, Any]:
        """Whole extractions, the first one and warm ones, and the parts of a batch of the size that they had."""
        from torch_bridge.expand import is_expanded
        from torch_bridge.extract_speed import BatchParts, profiled, whole_extraction
        from torch_bridge.extraction import Settings

        config, (target, drafter) = self.config, self.pair_to_extract()
        settings = Settings(
            questions=config.questions,
            max_new_tokens=config.max_new_tokens,
            batch=config.batch,
            shard_rows=config.shard_rows,
            inputs={"clips": "made up"},
            expand=config.expand,
        )
        root = self.run.path / "speed" / "stores"
        once = partial(whole_extraction, root, self.folder, SPLIT, target, drafter, settings)
        runs = [asdict(once()) for _ in range(config.runs + 1)]
        count = max(runs[-1]["batches"])
        parts = BatchParts(target, drafter, partial(self.clips, count), config.asked, config.max_new_tokens)
        parts.round()  # the first one costs more
        expanded = {"target": is_expanded(target), "drafter": is_expanded(drafter)}
        numbers = {"first": runs[0], "warm": runs[1:], "expanded": expanded}
        numbers |= {"parts": {"clips": count, "seconds": parts.round()}}
        if config.profile:
            kernels, seconds = profiled(parts.round, target.device)
            write_text(self.run.path / "kernels.txt", kernels)
            numbers["parts"]["kernel_seconds"] = seconds
        return numbers

    def single(self) -> dict[str, Any]:
        """One answer at a time, question i about clip i, of both models; and the same rows of a batch."""
        from torch_bridge.one_at_a_time import agreement, drafter_alone, target_alone

        config, asked = self.config, self.config.asked
        pair, clips = self.pair_as_made(), self.clips(config.single_answers)
        slots = [number % len(asked) for number in range(len(clips))]
        numbers = {}
        for which, vlm, answer in zip(("target", "drafter"), pair, (target_alone, drafter_alone), strict=True):
            answer(vlm, clips[0], asked[0], config.max_new_tokens)  # the first one costs more
            alone = [
                answer(vlm, clip, asked[slot], config.max_new_tokens) for clip, slot in zip(clips, slots, strict=True)
            ]
            numbers[which] = {
                "seconds": [one.seconds for one in alone],
                "lengths": [len(one.ids) for one in alone],
                "agreement": agreement(vlm, clips, asked, slots, alone, per_batch=config.batch or config.prefix_clips),
            }
        return numbers

    def prefix(self) -> Mapping[str, Any]:
        """The target's prompts with each clip's prefix read once, and read for each question."""
        from torch_bridge.expand import expand
        from torch_bridge.extract_speed import prefix_times

        config = self.config
        target, clips = self.pair_to_extract()[0], self.clips(config.prefix_clips)
        expand(target, config.expand)
        return prefix_times(target, clips, config.asked, repeats=config.repeats, tokens=config.max_new_tokens)

    def cut(self) -> dict[str, float]:
        """One core cuts a made recording and draws its event frames."""
        config = self.config
        return measure_on_one_core(
            self.run.path / "recording",
            config.cut_seconds,
            recording_seconds=config.cut_recording_seconds,
            events_per_second=config.cut_events_per_second,
        )
