"""Stage `benchmark`: predict every row from measured parts, write that down, then decode live and compare."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xmsd_jax import __version__
from xmsd_jax.config import ConfigError, UserError, dump
from xmsd_jax.data.clip_folder import ClipFolder
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.store import Store
from xmsd_jax.decoding.ports import Prompt
from xmsd_jax.pipeline.engine import EngineConfig
from xmsd_jax.pipeline.figures import check, measured_rows, predicted_rows
from xmsd_jax.pipeline.fitted import fit_drafters
from xmsd_jax.pipeline.gallery import write_pages
from xmsd_jax.pipeline.ladder_run import ClipAnswers, climb_set, prepare
from xmsd_jax.pipeline.live_pair import Lengths, LivePair
from xmsd_jax.pipeline.pair import PairConfig, pair_fingerprint
from xmsd_jax.pipeline.predicted import COSTS, write_costs
from xmsd_jax.pipeline.rows import TEXT, DraftRow
from xmsd_jax.pipeline.trained import load_trained, passports
from xmsd_jax.runs import Row, Run, provenance, read_results, stage_key, write_results

PREDICTED = "predicted"


@dataclass(frozen=True, kw_only=True)
class ClipSet:
    """Prompts to answer: `per_clip` questions about each clip of `split`, different ones from clip to clip.

    name: the set in words, as tables print it; answers: at most so many, all when null.
    """

    name: str
    split: str
    per_clip: int = len(QUESTIONS)
    answers: int | None = None


@dataclass(frozen=True, kw_only=True)
class LiveSettings:
    """How answers are decoded and timed.

    gamma: ids drafted an iteration; prefill_draft_len: ids drafted before the first token; order: longest context of
    the n-gram; repeats: timed passes (the median one of each answer counts); clips: the prompt sets. timed: answers of
    a set that are timed whole, evenly spread, all when null; the others are decoded by every drafting row as well, for
    certificate and walks, with vision and prefill computed once a question. engine: how both models decode.
    """

    clips: tuple[ClipSet, ...]
    rows: tuple[DraftRow, ...]
    gamma: int = 8
    prefill_draft_len: int = 12
    order: int = 8
    repeats: int = 3
    timed: int | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError where there is nothing to do, or two rows or sets have one name."""
        for name, values in (("clips", [c.name for c in self.clips]), ("rows", [r.name for r in self.rows])):
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name}: at least one is needed, each with its own name; got {values}")
        for name in ("gamma", "prefill_draft_len", "order", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.timed is not None and self.timed < 1:
            raise ConfigError(f"timed: must be at least 1, or null for all, got {self.timed}")

    @property
    def adapters(self) -> set[str]:
        """Names of the drafters that are no text drafters."""
        return {name for row in self.rows for name in (row.drafter, row.first) if name} - set(TEXT)


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Where everything is.

    clips: a folder made by `xmsd clips`; store: folder of stores made by `xmsd extract`; training: its split that text
    drafters are fitted on. adapters: folder of trained adapters, and evaluation: what `xmsd evaluate` made of them;
    both are needed for rows with adapters.
    """

    clips: Path
    store: Path
    live: LiveSettings
    training: str = "train"
    adapters: Path | None = None
    evaluation: Path | None = None
    pair: PairConfig = field(default_factory=PairConfig)
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        """Raise ConfigError for adapter rows without adapters or their evaluation."""
        if self.live.adapters and self.evaluation is None:
            raise ConfigError(
                f"evaluation: rows with {', '.join(sorted(self.live.adapters))} need what `xmsd evaluate` wrote; name "
                "its folder"
            )


def run(config: BenchmarkConfig, run_dir: Path, fresh: bool = False) -> list[Row]:
    """Measure every row; writes results.json, traces and gallery. RunFailed if an answer is not the target's own."""
    run = Run.open(run_dir, config)
    rows = benchmark(config, run, fresh)
    print(
        f"results: {run.path}/results.json; as a page: xmsd report report/small.yaml --run-dir {run.path}", flush=True
    )
    check(rows)
    return rows


def benchmark(
    config: BenchmarkConfig, run: Run, fresh: bool = False, extra: Callable[[], list[Row]] = list
) -> list[Row]:
    """The stage inside an open run; rows that `extra` makes then go into results.json beside the measured ones."""
    folder, training = ClipFolder.open(config.clips), Store.open(config.store / config.training)
    content = (
        folder.fingerprint,
        str(training.manifest.to_json()),
        pair_fingerprint(config.pair),
        *passports(config.adapters),
    )
    placed = replace(config, clips=Path(), store=Path(), adapters=None, evaluation=config.evaluation and Path())
    with run.stage("live", stage_key(placed, __version__, *content), fresh) as stage:
        if not stage.reused:
            write_results(stage.path, _measure(config, folder, training, run, stage.path), provenance())
    measured, origin = read_results(stage.path)
    write_results(run.path, [*measured, *extra()], origin | {"config": dump(config)})
    return measured


def check_held_out(store: Store, prompts: Sequence[Prompt]) -> None:
    """Raise UserError if the drafters would be fitted on answers about sequences that are asked about."""
    shared = {prompt.clip.sequence for prompt in prompts} & set(store.names["sequences"])
    if shared:
        raise UserError(
            f"store: {store.path}: holds answers about {', '.join(sorted(shared)[:3])}, which are asked about; "
            "fit the text drafters on the store of the training split"
        )


def prompts_of(chosen: ClipSet, folder: ClipFolder) -> list[Prompt]:
    """The prompts of a set. Raises UserError when the split has fewer than were asked for."""
    found = []
    for number, entry in enumerate(folder.entries(chosen.split)):
        clip = folder.load(entry)
        for turn in range(chosen.per_clip):
            index = (number * chosen.per_clip + turn) % len(QUESTIONS)
            found.append(Prompt(clip=clip, question=QUESTIONS[index], question_index=index))
    wanted = len(found) if chosen.answers is None else chosen.answers
    if not 0 < wanted <= len(found):
        raise UserError(
            f"live.clips: {chosen.name}: {wanted} answers are asked for, split {chosen.split} of {folder.path} gives "
            f"{len(found)}; make more clips or ask for fewer"
        )
    return found[:wanted]


def _measure(config: BenchmarkConfig, folder: ClipFolder, training: Store, run: Run, stage: Path) -> list[Row]:
    # prompts, models, drafters
    prompts = {chosen.name: prompts_of(chosen, folder) for chosen in config.live.clips}
    check_held_out(training, [prompt for asked in prompts.values() for prompt in asked])
    pair = _load(config, training)

    # predictions, on disk before anything is decoded live
    sets = [_prepare(config, chosen, prompts[chosen.name], pair) for chosen in config.live.clips]
    predicted = [row for one in sets for row in predicted_rows(one, pair, _settings(config))]
    write_costs(
        stage / COSTS, {one.clips: one.costs for one in sets}, {"baseline": pair.plain, "settings": _settings(config)}
    )
    write_results(stage / PREDICTED, predicted, provenance())

    # live
    climbed = [
        climb_set(one, pair, config.live.rows, repeats=config.live.repeats, timed=config.live.timed) for one in sets
    ]
    measured = [row for one in climbed for row in measured_rows(one, pair, _settings(config), config.pair.rounding)]
    write_pages(
        run.path,
        climbed,
        measured,
        tokenizer=pair.target.tokenizer,
        event_frames=pair.drafter_model.event_frames,
    )
    return [*measured, *predicted]


def _load(config: BenchmarkConfig, training: Store) -> LivePair:
    manifest = training.manifest
    lengths = Lengths(
        gamma=config.live.gamma,
        prefill_draft_len=config.live.prefill_draft_len,
        max_new_tokens=config.max_new_tokens,
    )
    text = fit_drafters(training, config.live.order, manifest.vocabulary["real"])
    adapters = load_trained(config.adapters, manifest)
    how: dict[str, Any] = {"engine": config.live.engine, "by_library": True}
    pair = LivePair.load(config.pair, lengths, text=text, adapters=adapters, **how)
    models = {"target": pair.target, "drafter": pair.drafter_model}
    needed = models if config.live.adapters else {"target": pair.target}
    for which, model in needed.items():
        if manifest.revisions[which] != model.fingerprint:
            raise UserError(
                f"store: {training.path}: its answers are another {which}'s; run `xmsd extract` with this pair"
            )
    return pair


def _prepare(config: BenchmarkConfig, chosen: ClipSet, prompts: list[Prompt], pair: LivePair) -> ClipAnswers:
    store = Store.open(config.store / chosen.split) if config.live.adapters else None
    return prepare(
        chosen.name,
        prompts,
        config.live.rows,
        pair,
        store=store,
        evaluation=config.evaluation,
        split=chosen.split,
    )


def _settings(config: BenchmarkConfig) -> Mapping[str, Any]:
    return {
        "max_new_tokens": config.max_new_tokens,
        "dtype": config.pair.dtype,
        "quantisation": config.pair.quantisation.describe(),
        "device": config.pair.device,
        "threads": config.pair.threads,
        "engine": config.live.engine.words,
        "lanes": config.live.engine.lanes,
        "repeats": config.live.repeats,
        "order": config.live.order,
        "machine": provenance()["cpu"],
    }
