"""Stage `demo`: the whole road on the small world, in one command; finished stages are reused."""

import resource
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from xmsd_jax.config import ConfigError
from xmsd_jax.pipeline.benchmark import LiveSettings
from xmsd_jax.pipeline.clips import ClipsConfig, make_clips
from xmsd_jax.pipeline.extract import ExtractConfig, extract
from xmsd_jax.pipeline.pair import PairConfig
from xmsd_jax.pipeline.report import ReportConfig
from xmsd_jax.pipeline.study import Plan, StudyConfig, check_plans, stage_markers, stages, study
from xmsd_jax.runs import Run


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Everything that the demo does, stage by stage.

    adapters: trained on the split `training`, chosen by the split `validation`; text drafters are fitted on `training`
    too. batch: clips answered together. The splits that are decoded live are stored as well.
    """

    clips: ClipsConfig
    live: LiveSettings
    adapters: tuple[Plan, ...] = ()
    pair: PairConfig = field(default_factory=PairConfig)
    training: str = "train"
    validation: str = "validation"
    batch: int = 4
    shard_rows: int = 320
    max_new_tokens: int = 64
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for a split that is fitted on and asked about, and for rows without their adapter."""
        asked = [chosen.split for chosen in self.live.clips]
        if self.training in asked or self.validation in asked:
            raise ConfigError(
                f"live.clips: {self.training} and {self.validation} are fitted on, got {asked}; ask others"
            )
        check_plans(self.adapters, self.live)


def run(config: DemoConfig, run_dir: Path, fresh: bool = False) -> Path:
    """Clips, states, adapters, live decoding, report; returns the page. RunFailed if an answer was not lossless."""
    start = perf_counter()
    run = Run.open(run_dir, config)
    splits = (config.training, config.validation, *(chosen.split for chosen in config.live.clips))
    asked = ExtractConfig(
        clips=run.path / "clips",
        pair=config.pair,
        splits=tuple(dict.fromkeys(split for split in splits if split != config.validation or config.adapters)),
        max_new_tokens=config.max_new_tokens,
        batch=config.batch,
        shard_rows=config.shard_rows,
    )
    trained = StudyConfig(
        clips=asked.clips,
        store=run.path / "store",
        adapters=config.adapters,
        live=config.live,
        training=config.training,
        validation=config.validation,
        pair=config.pair,
        max_new_tokens=config.max_new_tokens,
        report=config.report,
    )
    before = stage_markers(run, ("clips", "store", *stages(trained)))
    folder = make_clips(config.clips, run, fresh)
    extract(asked, folder, run, fresh)
    page = study(trained, run, fresh, before=before)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kB on Linux
    print(f"demo: {perf_counter() - start:.0f} s in all, at most {peak:.1f} GB of memory", flush=True)
    return page
