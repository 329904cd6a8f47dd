"""Stage `benchmark` of training: step and epoch times, sweeps and judging at full size, against compiled PyTorch."""

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import jax

from xmsd_jax import __version__
from xmsd_jax.adapters.kinds import kind_of
from xmsd_jax.config import ConfigError, dump
from xmsd_jax.pipeline import speed_baseline
from xmsd_jax.pipeline.kernel_times import kernel_profile
from xmsd_jax.pipeline.made_split import Shape, made_source
from xmsd_jax.pipeline.speed_parts import (
    Training,
    chip,
    judge_speed,
    resident_epoch,
    step_times,
    stream_epoch,
    sweep_speed,
)
from xmsd_jax.runs import Kind, Row, Run, RunFailed, provenance, stage_key, write_results, write_text
from xmsd_jax.training.engine import Engine

Part = Literal["steps", "stream", "sweep", "judge", "parity"]
TorchMode = Literal["eager", "default", "reduce-overhead"]
BASELINE = "the same in PyTorch, compiled"


@dataclass(frozen=True, kw_only=True)
class TrainSpeedConfig:
    """What is timed. States are random, of the study's shape; the ratio of two times is always of one run.

    kinds: adapters. shape: of the split on the device. batch: answers a step. steps: in one timed call, of which there
    are `repeats`, turn by turn with the baseline's. torch_modes: of torch.compile, the fastest counts; empty without a
    baseline. torch_attention: forms that the baseline tries, by kind: "matmul" (products and softmax, the default) and
    "fused" (scaled_dot_product_attention). pure_kinds: whose epochs are compared with steps on batches that lie ready.
    study_answers, study_epochs: what an epoch's time is extrapolated to. stream_kind: read from a store in the run
    folder. sweep_kind, sweep_members, sweep_epochs: one program against single runs. judge_kind, judge_answers,
    judge_gamma: rolled out at every anchor. parity_kinds, parity_steps, parity_answers: loss curves in float32 against
    PyTorch. parts: to measure. profile: kernel times of a call.
    """

    kinds: tuple[str, ...] = ("L1", "L2", "L3", "L4", "L5", "B1", "L5F")
    shape: Shape = field(default_factory=Shape)
    batch: int = 64
    steps: int = 40
    repeats: int = 5
    torch_modes: tuple[TorchMode, ...] = ("default", "reduce-overhead")
    torch_attention: dict[str, tuple[Literal["matmul", "fused"], ...]] = field(default_factory=dict)
    pure_kinds: tuple[str, ...] = ("L1", "L5F")
    study_answers: int = 52080
    study_epochs: int = 50
    stream_kind: str = "L5F"
    sweep_kind: str = "L1"
    sweep_members: int = 8
    sweep_epochs: int = 5
    judge_kind: str = "B1"
    judge_answers: int = 11000
    judge_gamma: int = 5
    parity_kinds: tuple[str, ...] = ("L3", "B1")
    parity_steps: int = 200
    parity_answers: int = 1024
    parts: tuple[Part, ...] = ("steps", "stream", "sweep", "judge", "parity")
    profile: bool = True
    engine: Engine = field(default_factory=Engine)

    def __post_init__(self) -> None:
        """Raise ConfigError for unknown kinds and for more answers in a call than there are."""
        for kind in (*self.kinds, self.stream_kind, self.sweep_kind, self.judge_kind, *self.parity_kinds):
            kind_of(kind)
        if self.steps * self.batch > self.shape.answers:
            raise ConfigError(
                f"steps: {self.steps} of {self.batch} answers need {self.steps * self.batch}, shape.answers is "
                f"{self.shape.answers}"
            )
        if self.repeats < 2:
            raise ConfigError(f"repeats: must be at least 2 to show a spread, got {self.repeats}")


def run(config: TrainSpeedConfig, run_dir: Path, fresh: bool = False) -> list[Row]:
    """Measure all parts (finished ones are reused), write results.json after each, print the table."""
    run = Run.open(run_dir, config)
    found: dict[str, dict[str, Any]] = {}
    rows: list[Row] = []
    failed: list[str] = []
    for part, name, measure in _measures(config, run):
        stage = part if name == part else f"{part}_{name}"
        try:
            numbers = _part(run, config, stage, fresh, measure)
        except Exception as error:  # out of memory, a compiler's: the other parts are worth measuring all the same
            traceback.print_exc()
            failed.append(f"{stage} ({type(error).__name__})")
            continue
        found.setdefault(part, {})[name] = numbers
        rows = result_rows(found, config)
        write_results(run.path, rows, provenance() | {"config": dump(config)})
    print(table(rows))
    print(f"results: {run.path}/results.json", flush=True)
    if failed:
        raise RunFailed(
            f"not measured: {', '.join(failed)}; the reasons stand above, the same command tries them again"
        )
    return rows


def _measures(config: TrainSpeedConfig, run: Run) -> list[tuple[str, str, Callable[[], Any]]]:
    """Part, what of it, and how to measure that."""
    store = run.path / "made_store" / "train"
    by_part: dict[str, list[tuple[str, Callable[[], Any]]]] = {
        "steps": [(kind, partial(_one_kind, config, kind, run)) for kind in config.kinds],
        "stream": [(config.stream_kind, partial(stream_epoch, config, store))],
        "sweep": [(config.sweep_kind, partial(sweep_speed, config))],
        "judge": [(config.judge_kind, partial(judge_speed, config))],
        "parity": [(kind, partial(speed_baseline.parity, config, kind)) for kind in config.parity_kinds],
    }
    asked = [(part, name, measure) for part in config.parts for name, measure in by_part[part]]
    return [("chip", "chip", partial(chip, config.engine)), *asked]


def _one_kind(config: TrainSpeedConfig, kind: str, run: Run) -> dict[str, Any]:
    """Step times of a kind, ours and the baseline's turn by turn."""
    source = made_source(config.shape, config.engine.mesh(), drafter=kind_of(kind).facts.inputs != "target")
    if config.torch_modes:
        speed_baseline.begin()
    training = Training(config, kind)
    ours = step_times(config, training, source)
    others = {mode: speed_baseline.baseline_times(config, kind, source, mode) for mode in config.torch_modes}
    for _ in range(config.repeats):
        for timed in (ours, *others.values()):
            timed.turn()
    if config.profile:
        write_text(run.path / f"kernels_{kind}.txt", kernel_profile(ours.call, config.steps))
    epoch = resident_epoch(config, training, source)
    content = {
        "ours": ours.to_json(),
        "epoch": epoch,
        "torch": {mode: timed.to_json() for mode, timed in others.items()},
    }
    for timed in (ours, *others.values()):
        timed.close()
    print(f"{kind}: {_told(content)}", flush=True)
    return content


def _told(content: Mapping[str, Any]) -> str:
    parts = [f"{median(content['ours']['ms']):.3f} ms a step"]
    parts += [f"torch {mode} {median(timed['ms']):.3f}" for mode, timed in content["torch"].items()]
    return ", ".join(parts)


def _part(run: Run, config: TrainSpeedConfig, name: str, fresh: bool, measure: Callable[[], Any]) -> Any:
    """A part's numbers, measured or read from the run folder."""
    key = stage_key(replace(config, parts=(), kinds=(), parity_kinds=()), __version__, name)
    with run.stage(name, key, fresh) as stage:
        file = stage.path / "numbers.json"
        if not stage.reused:
            write_text(file, json.dumps(measure(), indent=1) + "\n")
    return json.loads(file.read_text(encoding="utf-8"))


def result_rows(found: Mapping[str, Mapping[str, Any]], config: TrainSpeedConfig) -> list[Row]:
    """Every figure as a row; `found`: part -> what of it -> its numbers."""
    shared = {
        "answers": config.shape.answers,
        "positions": config.shape.positions,
        "width": config.shape.width,
        "batch": config.batch,
        "dtype": str(config.engine.dtype),
        "states": "random",
        "device": jax.devices()[0].device_kind,
    }
    rows, chip_found = _Rows(shared), found["chip"]["chip"]
    rows.add("chip", "matmul", chip_found["matmul_tflops"], "TFLOP/s")
    rows.add("chip", "copy", chip_found["copy_gbs"], "GB/s")
    for kind, content in found.get("steps", {}).items():
        _step_rows(rows, kind, content, chip_found["matmul_tflops"])
    if "steps" in found:
        about = {
            "kinds": list(found["steps"]),
            "epochs": config.study_epochs,
            "study_answers": config.study_answers,
            "measured_answers": config.shape.answers,
        }
        rows.add(
            "all adapters", "study_minutes", _study_minutes(found["steps"], config), "min", kind="extrapolated", **about
        )
    for kind, content in found.get("stream", {}).items():
        for which in ("first", "later"):
            share = content[which] / content["pure"]
            rows.add(kind, f"stream_share_{which}", share, "", baseline="steps on batches that lie ready", **content)
        rows.add(kind, "stream_host_gb", content["host_gb"], "GB")
    for kind, content in found.get("sweep", {}).items():
        name, gain = f"sweep of {content['members']} x {kind}", content["single_ms"] * content["members"]
        rows.add(name, "throughput", gain / content["together_ms"], "x", baseline="single runs", **content)
        rows.add(name, "wall_clock_share", content["together_s"] / content["single_s"], "", baseline="single runs")
    for kind, content in found.get("judge", {}).items():
        rows.add(kind, "judge_seconds", content["seconds"], "s", **content)
    for kind, content in found.get("parity", {}).items():
        rows.add(kind, "loss_difference", content["worst"], "relative", baseline="the same in PyTorch", **content)
    return rows.made


class _Rows:
    """Collects rows that share settings."""

    def __init__(self, shared: Mapping[str, Any]) -> None:
        self.shared, self.made = shared, list[Row]()

    def add(
        self, row: str, metric: str, value: float, unit: str, *, baseline: str | None = None, kind: Kind = "measured",
        low: float | None = None, high: float | None = None, n: int | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        """One row."""
        self.made.append(
            Row(
                row=row,
                metric=metric,
                value=value,
                low=low,
                high=high,
                n=n,
                unit=unit,
                baseline=baseline,
                kind=kind,
                settings={**self.shared, **settings},
            )
        )


def _step_rows(rows: _Rows, kind: str, content: Mapping[str, Any], matmul_tflops: float) -> None:
    ours = content["ours"]
    about = {"compile_s": ours["compile_s"], "loss": ours["loss"]}
    middle = median(ours["ms"])
    rows.add(kind, "step_ms", middle, "ms", low=min(ours["ms"]), high=max(ours["ms"]), n=len(ours["ms"]), **about)
    rows.add(kind, "mfu", ours["flops"] / (middle * 1e-3) / (matmul_tflops * 1e12), "", baseline="measured matmul rate")
    epoch = content["epoch"]
    rows.add(kind, "epoch_answers_per_second", epoch["epoch"], "answers/s", slowest=epoch["slowest"])
    step_rate = rows.shared["batch"] / (middle * 1e-3)
    rows.add(kind, "epoch_share", epoch["epoch"] / step_rate, "", baseline="its own steps", step_rate=step_rate)
    if epoch["pure"] is not None:
        share = epoch["epoch"] / epoch["pure"]
        rows.add(kind, "epoch_share_ready", share, "", baseline="steps on batches that lie ready", pure=epoch["pure"])
    for mode, timed in content["torch"].items():
        rows.add(
            kind, "torch_step_ms", median(timed["ms"]), "ms", low=min(timed["ms"]), high=max(timed["ms"]),
            n=len(timed["ms"]), mode=mode, compile_s=timed["compile_s"], loss=timed["loss"],
            attention=timed["attention"], tried_ms=timed["tried_ms"],
        )  # fmt: skip
    if content["torch"]:
        mode, best = min(content["torch"].items(), key=lambda item: median(item[1]["ms"]))
        pairs = sorted(b / a for a, b in zip(ours["ms"], best["ms"], strict=True))
        rows.add(
            kind, "speedup", median(best["ms"]) / middle, "x", low=pairs[0], high=pairs[-1], n=len(pairs),
            baseline=BASELINE, mode=mode,
        )  # fmt: skip


def _study_minutes(kinds: Mapping[str, Any], config: TrainSpeedConfig) -> float:
    """Minutes that training all adapters as the study did would take, from the epochs measured; compiling included."""
    seconds = sum(
        config.study_answers / content["epoch"]["epoch"] * config.study_epochs + content["ours"]["compile_s"]
        for content in kinds.values()
    )
    return seconds / 60


def table(rows: Sequence[Row]) -> str:
    """The figures, one line each."""
    lines = []
    for row in rows:
        spread = "" if row.low is None else f" ({row.low:.3f} to {row.high:.3f})"
        against = "" if row.baseline is None else f" against {row.baseline}"
        mode = f" [{row.settings['mode']}]" if "mode" in row.settings else ""
        value = "-" if row.value is None else f"{row.value:.4g}"
        lines.append(f"{row.row:20} {row.metric:26} {value:>9} {row.unit}{spread}{against}{mode}")
    return "\n".join(lines)
