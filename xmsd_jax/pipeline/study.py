"""Stage `study`: train all adapters on one store, judge, predict, decode live, report; finished parts are reused."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from xmsd_jax.adapters.interface import Pairing
from xmsd_jax.config import ConfigError
from xmsd_jax.data.clip_folder import ClipFolder
from xmsd_jax.pipeline import report
from xmsd_jax.pipeline.benchmark import BenchmarkConfig, LiveSettings, benchmark
from xmsd_jax.pipeline.evaluate import STAGE as EVALUATION
from xmsd_jax.pipeline.evaluate import EvaluateConfig, evaluate
from xmsd_jax.pipeline.figures import check
from xmsd_jax.pipeline.pair import PairConfig
from xmsd_jax.pipeline.report import ReportConfig
from xmsd_jax.pipeline.rows import PHASE_2, TEXT, drafter_name, folder_name
from xmsd_jax.pipeline.train import HISTORY, TrainConfig, train_adapter
from xmsd_jax.report.rows import stage_row
from xmsd_jax.runs import Row, Run
from xmsd_jax.training.recipe import Recipe

ADAPTERS = "adapters"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One adapter to train: kind and pairing as in `xmsd train`, and its recipe."""

    kind: Literal["L1", "L2", "L3", "L4", "L5", "B1", "L5F"]
    pairing: Pairing | None = None
    recipe: Recipe = field(default_factory=Recipe)

    @property
    def name(self) -> str:
        """Its name in tables."""
        reads_both = self.kind in ("L5", "L5F")
        return drafter_name(self.kind, (self.pairing or "index") if reads_both else self.pairing)

    @property
    def stage(self) -> str:
        """Its folder inside a run."""
        return f"{ADAPTERS}/{folder_name(self.name)}"


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """One store, all adapters, every row.

    clips: a folder of `xmsd clips`; store: the folder of stores that `xmsd extract` made of it, with the splits
    `training`, `validation` and those that are decoded live.
    """

    clips: Path
    store: Path
    adapters: tuple[Plan, ...]
    live: LiveSettings
    training: str = "train"
    validation: str = "validation"
    pair: PairConfig = field(default_factory=PairConfig)
    max_new_tokens: int = 64
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for rows whose adapter is not trained, and for adapters trained twice."""
        check_plans(self.adapters, self.live)


def check_plans(plans: tuple[Plan, ...], live: LiveSettings) -> None:
    """Raise ConfigError unless each adapter row has its one plan."""
    names = [plan.name for plan in plans]
    missing = sorted(name for name in live.adapters if not name.startswith("identity") and name not in names)
    if missing or len(set(names)) < len(names):
        raise ConfigError(
            f"adapters: each is trained once, and those that rows name are; got {names}, missing {missing}"
        )


def run(config: StudyConfig, run_dir: Path, fresh: bool = False) -> Path:
    """Train, judge, predict, decode, report; returns the page. RunFailed if an answer was not lossless."""
    run = Run.open(run_dir, config)
    ClipFolder.open(config.clips)
    before = stage_markers(run, stages(config))
    return study(config, run, fresh, before=before)


def study(config: StudyConfig, run: Run, fresh: bool = False, *, before: Mapping[str, Any]) -> Path:
    """The study inside an open run; `before` holds the markers of its stages, to tell what was reused."""
    # adapters
    for plan in config.adapters:
        train_adapter(
            TrainConfig(
                store=config.store / config.training,
                validation=config.store / config.validation,
                kind=plan.kind,
                pairing=plan.pairing,
                recipe=plan.recipe,
            ),
            run,
            name=plan.stage,
            fresh=fresh,
        )
    adapters = run.path / ADAPTERS if config.adapters else None

    # offline
    judged = EvaluateConfig(
        store=config.store,
        training=config.training,
        splits=tuple(dict.fromkeys(chosen.split for chosen in config.live.clips)),
        adapters=adapters,
        gamma=longest_draft(config.live, TEXT),
        adapter_gamma=longest_draft(config.live, PHASE_2),
        prefill_draft_len=config.live.prefill_draft_len,
        order=config.live.order,
        names={chosen.split: chosen.name for chosen in config.live.clips},
    )
    offline = evaluate(judged, run, fresh)

    # predictions and live decoding
    timed = BenchmarkConfig(
        clips=config.clips,
        store=config.store,
        training=config.training,
        adapters=adapters,
        evaluation=run.path / EVALUATION,
        live=config.live,
        pair=config.pair,
        max_new_tokens=config.max_new_tokens,
    )

    def extra() -> list[Row]:
        return [*offline, *training_rows(run, config.adapters), *stage_rows(run, before)]

    rows = benchmark(timed, run, fresh, extra=extra)

    # report
    page = report.run(config.report, run.path)
    check(rows)
    return page


def longest_draft(live: LiveSettings, drafters: tuple[str, ...]) -> int:
    """The largest gamma of rows with some drafters; that of the ladder where there are none."""
    return max((row.longest(live.gamma) for row in live.rows if row.drafter in drafters), default=live.gamma)


def stages(config: StudyConfig) -> tuple[str, ...]:
    """Names of the study's stages, in order."""
    return (*(plan.stage for plan in config.adapters), EVALUATION, "live")


def training_rows(run: Run, plans: tuple[Plan, ...]) -> list[Row]:
    """The curves of each training, one row a series, read from the history that training wrote."""
    rows = []
    for plan in plans:
        history = json.loads((run.path / plan.stage / HISTORY).read_text(encoding="utf-8"))
        accepted, chosen = history["accepted"], history["chosen"]
        series = {
            "training loss": history["training_loss"],
            "validation loss": history["validation_loss"],
            f"validation {accepted}": history[f"validation_{accepted}"],
        }
        at = history["epochs"].index(chosen["epoch"])
        for name, values in series.items():
            about = {"series": name, "epochs": history["epochs"], "values": values, "chosen": chosen["epoch"]}
            rows.append(Row(row=plan.name, metric="training_curve", value=values[at], n=len(values), settings=about))
    return rows


def stage_markers(run: Run, names: tuple[str, ...]) -> dict[str, Any]:
    """The markers of some stages; {} for one that never ran."""
    return {name: _marker(run, name) for name in names}


def stage_rows(run: Run, before: Mapping[str, Any]) -> list[Row]:
    """Seconds of each finished stage; one whose marker is what it was `before` this run was reused."""
    now = {name: _marker(run, name) for name in before}
    return [stage_row(name, marker.get("seconds", 0.0), reused=marker == before[name]) for name, marker in now.items()]


def _marker(run: Run, name: str) -> dict[str, Any]:
    path = run.path / name / "stage.json"
    return json.loads(path.read_text()) if path.is_file() else {}
