"""Stage `demo`: the whole road on the small world, in one command; finished stages are reused."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xmsd_jax.config import ConfigError
from xmsd_jax.pipeline import report
from xmsd_jax.pipeline.benchmark import BenchmarkConfig, LiveSettings, benchmark
from xmsd_jax.pipeline.clips import ClipsConfig, make_clips
from xmsd_jax.pipeline.extract import ExtractConfig, extract
from xmsd_jax.pipeline.figures import check
from xmsd_jax.pipeline.pair import PairConfig
from xmsd_jax.pipeline.report import ReportConfig
from xmsd_jax.report.rows import stage_row
from xmsd_jax.runs import Row, Run

STAGES = ("clips", "store", "live")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Everything that the demo does, stage by stage.

    training: the split whose answers the text drafters are fitted on; states: the splits whose states are stored;
    batch: clips answered together.
    """

    clips: ClipsConfig
    live: LiveSettings
    pair: PairConfig = field(default_factory=PairConfig)
    training: str = "train"
    states: tuple[str, ...] = ("train", "validation")
    batch: int = 4
    shard_rows: int = 320
    max_new_tokens: int = 64
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError when the drafters' split would have no store."""
        if self.training not in self.states:
            raise ConfigError(f"training: {self.training} must be one of states, got {list(self.states)}; add it there")


def run(config: DemoConfig, run_dir: Path, fresh: bool = False) -> Path:
    """Clips, states, drafters, live decoding, report; returns the page. RunFailed if an answer was not lossless."""
    run = Run.open(run_dir, config)
    before = {name: _marker(run, name) for name in STAGES}

    # clips
    folder = make_clips(config.clips, run, fresh)

    # paired states and ids
    asked = ExtractConfig(
        clips=folder.path,
        pair=config.pair,
        splits=config.states,
        max_new_tokens=config.max_new_tokens,
        batch=config.batch,
        shard_rows=config.shard_rows,
    )
    stores = extract(asked, folder, run, fresh)

    # live decoding
    timed = BenchmarkConfig(
        clips=folder.path,
        store=stores[config.training],
        live=config.live,
        pair=config.pair,
        max_new_tokens=config.max_new_tokens,
    )
    rows = benchmark(timed, run, fresh, extra=lambda: stage_rows(run, before))

    # report
    page = report.run(config.report, run.path)
    check(rows)
    return page


def stage_rows(run: Run, before: Mapping[str, Any]) -> list[Row]:
    """Seconds of each finished stage; one whose marker is what it was `before` this run was reused."""
    now = {name: _marker(run, name) for name in STAGES}
    return [stage_row(name, marker["seconds"], reused=marker == before[name]) for name, marker in now.items()]


def _marker(run: Run, name: str) -> dict[str, Any]:
    path = run.path / name / "stage.json"
    return json.loads(path.read_text()) if path.is_file() else {}
