"""Stage `benchmark` of live decoding at true sizes: random weights, recorded decisions, imposed acceptances.

What a 7B pair of random weights says means nothing; what its passes cost is real. So the target's decisions are those
of recorded answers (rows "replayed": for text drafters the acceptance is the recorded model's own), or an oracle drafts
with an acceptance that is imposed, at the true compute of a drafter (rows "imposed").
"""

import dataclasses
import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from xmsd_jax import __version__
from xmsd_jax.config import ConfigError, UserError, dump
from xmsd_jax.data.clips_made import MadeClips
from xmsd_jax.data.made_shape import MadeShape
from xmsd_jax.pipeline.answers import AnswersConfig
from xmsd_jax.pipeline.engine import EngineConfig
from xmsd_jax.pipeline.live_speed_rows import FAILED, result_rows, table
from xmsd_jax.pipeline.rows import DraftRow
from xmsd_jax.runs import Row, Run, RunFailed, provenance, stage_key, write_results, write_text

Part = Literal["passes", "replayed", "beside", "imposed", "exact"]
Format = Literal["none", "nf4"]


@dataclass(frozen=True, kw_only=True)
class Imposed:
    """Which acceptances are imposed at which compute.

    acceptances: of every drafted token, where all before it are right. rows: who would draft so. answers: of each
    length. lengths: tokens of an answer, N; those beyond the first are timed for `long_rows` alone.
    """

    acceptances: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    rows: tuple[DraftRow, ...] = ()
    answers: int = 4
    lengths: tuple[int, ...] = (50, 128, 256)
    long_rows: tuple[DraftRow, ...] = ()

    def __post_init__(self) -> None:
        """Raise ConfigError where nothing is imposed."""
        if not all(0 <= a <= 1 for a in self.acceptances) or not self.acceptances:
            raise ConfigError(f"acceptances: probabilities are needed, at least one, got {list(self.acceptances)}")
        if self.answers < 1 or not self.lengths or min(self.lengths) < 2:
            raise ConfigError(f"answers and lengths: at least 1 answer of 2 tokens, got {self.answers}, {self.lengths}")


@dataclass(frozen=True, kw_only=True)
class LiveSpeedConfig:
    """What is timed. Weights are random; the ratio of two times is always of one run.

    imposed: see there. recorded: files of recorded answers; text drafters are fitted on one part, the other is replayed
    (without a file, part replayed is left out). formats: of both models, one after the other. rows: the replayed ladder
    without quantisation; quantised_rows: in NF4, where the shortest answers alone are imposed. replayed_answers: how
    many, evenly spread. gamma, prefill_draft_len, order, repeats: as in a benchmark of a real pair. passes: lengths M
    that are timed alone; beyond those of the engine they are read as prompts are. exact_answers: of the target's own,
    decoded with an oracle (acceptance `exact_acceptance`) and alone, with and without exact passes. parts: to measure.
    quantised_exact_answers: the same in NF4. made: the clip that is looked at. threads: of torch on a CPU.
    """

    imposed: Imposed
    recorded: AnswersConfig = field(default_factory=AnswersConfig)
    shape: MadeShape = field(default_factory=MadeShape)
    made: MadeClips = field(default_factory=lambda: MadeClips(count=1, distinct=1))
    formats: tuple[Format, ...] = ("none", "nf4")
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    device: str = "cuda"
    threads: int | None = None
    seed: int = 0
    engine: EngineConfig = field(default_factory=EngineConfig)
    rows: tuple[DraftRow, ...] = ()
    quantised_rows: tuple[DraftRow, ...] = ()
    replayed_answers: int = 20
    max_new_tokens: int = 50
    gamma: int = 8
    prefill_draft_len: int = 12
    order: int = 8
    repeats: int = 3
    passes: tuple[int, ...] = (1, 2, 4, 6, 9, 12, 16)
    pass_repeats: int = 30
    exact_answers: int = 8
    quantised_exact_answers: int = 8
    exact_acceptance: float = 0.8
    parts: tuple[Part, ...] = ("passes", "replayed", "beside", "imposed", "exact")

    def __post_init__(self) -> None:
        """Raise ConfigError for numbers below one, and for rows that would be decoded twice."""
        for name in (
            "replayed_answers",
            "max_new_tokens",
            "gamma",
            "prefill_draft_len",
            "order",
            "exact_answers",
            "quantised_exact_answers",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.repeats < 3 or self.pass_repeats < 3:
            raise ConfigError(f"repeats: at least 3 show a spread, got {self.repeats} and {self.pass_repeats}")
        for name in ("rows", "quantised_rows"):
            named = [row.name for row in getattr(self, name)]
            if len(set(named)) < len(named):
                raise ConfigError(f"{name}: each row once, got {named}")
        if not self.formats or not self.parts:
            raise ConfigError("formats and parts: at least one of each is needed")

    def measured(self, quantisation: Format) -> list[str]:
        """The parts to measure in a format, each kept on its own; says so where one is left out."""
        found: list[str] = []
        for part in self.parts:
            if part == "imposed":
                lengths = self.imposed.lengths if quantisation == "none" else self.imposed.lengths[:1]
                found += [f"imposed{tokens}" for tokens in lengths]
            elif part == "replayed" and self.recorded.test is None:
                print("replayed: left out, no recorded answers; give --recorded.fit FILE --recorded.test FILE")
            elif part == "exact" and self.engine.cache == "growing":
                print("exact: left out, a growing cache has no passes of one length")
            else:
                found.append(part)
        return found


def run(config: LiveSpeedConfig, run_dir: Path, fresh: bool = False) -> list[Row]:
    """Measure all parts (finished ones are reused), write results.json after each, print the table.

    Raises:
        UserError: a device that is not there, or a file of answers that cannot be read.
        RunFailed: a part could not be measured, or exact passes gave other ids.
    """
    from xmsd_jax.pipeline.live_speed_parts import Bench

    opened = Run.open(run_dir, config)
    found: dict[str, dict[str, Any]] = {}
    failed: list[str] = []
    rows: list[Row] = []
    for quantisation in config.formats:
        bench = Bench(config, opened, quantisation)
        for part in config.measured(quantisation):
            try:
                found.setdefault(quantisation, {})[part] = _part(opened, config, f"{part}_{quantisation}", fresh, bench)
            except UserError:
                raise
            except Exception as error:  # out of memory, a kernel's: the other parts are worth measuring all the same
                traceback.print_exc()
                failed.append(f"{part} in {quantisation} ({type(error).__name__})")
                continue
            rows = result_rows(found, config)
            write_results(opened.path, rows, provenance() | {"config": dump(config), "weights": "random"})
        bench.release()
    print("\n".join([table(rows), f"results: {opened.path}/results.json"]), flush=True)
    wrong = [f"{row.row}: {row.value:g} {row.metric}" for row in rows if row.metric in FAILED and row.value]
    if failed or wrong:
        raise RunFailed(f"not measured, or wrong: {', '.join([*failed, *wrong])}; see above and results.json")
    return rows


def _part(run: Run, config: LiveSpeedConfig, name: str, fresh: bool, bench: Any) -> Any:
    """A part's numbers, measured or read from the run folder."""
    measures: Mapping[str, Callable[[Path], Any]] = bench.measures
    key = stage_key(dataclasses.replace(config, parts=("passes",), formats=("none",)), __version__, name)
    with run.stage(name, key, fresh) as stage:
        file = stage.path / "numbers.json"
        if not stage.reused:
            write_text(file, json.dumps(measures[name.split("_")[0]](stage.path), indent=1) + "\n")
    return json.loads(file.read_text(encoding="utf-8"))
