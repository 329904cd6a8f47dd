"""Stage `benchmark`: live speculative decoding against target-only decoding, on the same prompts, interleaved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from xmsd_jax import __version__
from xmsd_jax.config import ConfigError, UserError, dump
from xmsd_jax.data.clip_folder import ClipFolder
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.store import Store
from xmsd_jax.decoding.ladder import Rung, climb, references, speculative
from xmsd_jax.decoding.live import LiveConfig
from xmsd_jax.decoding.ngram import NGram
from xmsd_jax.decoding.plain import decode_plain
from xmsd_jax.decoding.ports import Drafter, Prompt, Verifier
from xmsd_jax.decoding.text_drafters import PromptLookup, Template
from xmsd_jax.decoding.trace import Trace
from xmsd_jax.pipeline.figures import Measured, check, measured_rows
from xmsd_jax.pipeline.gallery import write_pages
from xmsd_jax.pipeline.pair import PairConfig, pair_fingerprint, pair_options
from xmsd_jax.runs import Row, Run, progress, provenance, read_results, stage_key, write_results

Mode = Literal["none", "ride", "wait"]


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
class DraftRow:
    """One row of the table: a text drafter, and how it drafts during the prefill."""

    drafter: Literal["prompt-lookup", "template", "n-gram"]
    prefill_mode: Mode = "none"

    @property
    def name(self) -> str:
        """The row's name: the drafter, with its phase-1 mode where it has one."""
        return self.drafter if self.prefill_mode == "none" else f"{self.drafter} ({self.prefill_mode})"


@dataclass(frozen=True, kw_only=True)
class LiveSettings:
    """How answers are decoded and timed.

    gamma: ids drafted an iteration; prefill_draft_len: ids drafted before the first token; order: longest context of
    the n-gram; repeats: timed passes over all prompts (the median one of each answer counts); clips: the prompt sets.
    """

    clips: tuple[ClipSet, ...]
    rows: tuple[DraftRow, ...]
    gamma: int = 8
    prefill_draft_len: int = 12
    order: int = 8
    repeats: int = 3

    def __post_init__(self) -> None:
        """Raise ConfigError where there is nothing to do, or two rows or sets have one name."""
        for name, values in (("clips", [c.name for c in self.clips]), ("rows", [r.name for r in self.rows])):
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name}: at least one is needed, each with its own name; got {values}")
        for name in ("gamma", "prefill_draft_len", "order", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """clips: a folder made by `xmsd clips`; store: training answers, a split of a store made by `xmsd extract`."""

    clips: Path
    store: Path
    live: LiveSettings
    pair: PairConfig = field(default_factory=PairConfig)
    max_new_tokens: int = 64


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
    folder, store = ClipFolder.open(config.clips), Store.open(config.store)
    content = (folder.fingerprint, str(store.manifest.to_json()), pair_fingerprint(config.pair))
    key = stage_key(replace(config, clips=Path(), store=Path()), __version__, *content)
    with run.stage("live", key, fresh) as stage:
        if not stage.reused:
            write_results(stage.path, _measure(config, folder, store, run), provenance())
    measured, origin = read_results(stage.path)
    write_results(run.path, [*measured, *extra()], origin | {"config": dump(config)})
    return measured


def fit_drafters(store: Store, order: int, vocabulary: int) -> dict[str, Drafter]:
    """The text drafters, fitted on the target's answers in a store of the training split."""
    questions, answers = store.read("question"), dict[int, list[list[int]]]()
    for row in range(store.rows):
        answers.setdefault(int(questions[row]), []).append(store.token_ids("target", row).tolist())
    fitted = (
        Template.fit(answers, vocabulary=vocabulary),
        NGram.fit(answers, vocabulary=vocabulary, order=order),
        PromptLookup(vocabulary=vocabulary),
    )
    return {drafter.name: drafter for drafter in fitted}


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


def _measure(config: BenchmarkConfig, folder: ClipFolder, store: Store, run: Run) -> list[Row]:
    from torch_bridge.pair import load_pair
    from torch_bridge.verifier import TorchVerifier

    prompts = {chosen.name: prompts_of(chosen, folder) for chosen in config.live.clips}
    check_held_out(store, [prompt for asked in prompts.values() for prompt in asked])
    target, drafter_model = load_pair(**pair_options(config.pair))
    if store.manifest.revisions["target"] != target.fingerprint:
        raise UserError(f"store: {store.path}: its answers are another target's; run `xmsd extract` with this pair")
    verifier = TorchVerifier(target)
    rungs = _rungs(config, target, verifier, fit_drafters(store, config.live.order, verifier.vocabulary))
    sets = [_one_set(config, name, asked, verifier, rungs) for name, asked in prompts.items()]
    write_pages(run.path, sets, rungs, tokenizer=target.tokenizer, event_frames=drafter_model.event_frames)
    return [row for one in sets for row in measured_rows(one, verifier, rungs, _settings(config), config.pair.dtype)]


def _one_set(
    config: BenchmarkConfig, name: str, prompts: list[Prompt], verifier: Verifier, rungs: Sequence[Rung]
) -> Measured:
    """The reference, one untimed turn of every row on two prompts, then the timed turns."""
    seen = progress(prompts, total=len(prompts), label=f"reference: {name}")
    expected = references(verifier, seen, config.max_new_tokens)
    climb(rungs, prompts[:2], repeats=1)
    turns = partial(progress, total=config.live.repeats * len(prompts), label=f"live: {name}")
    traces = climb(rungs, prompts, repeats=config.live.repeats, watch=turns)
    return Measured(clips=name, prompts=tuple(prompts), expected=tuple(expected), traces=traces)


def _rungs(config: BenchmarkConfig, target: Any, verifier: Verifier, drafters: dict[str, Drafter]) -> list[Rung]:
    from torch_bridge.generate import generate

    count, live = config.max_new_tokens, config.live

    def library(prompt: Prompt) -> Trace:
        ids, seconds = generate(target, prompt, count)
        stop = "eos" if ids[-1] in verifier.eos_ids else "length"
        return Trace(ids=ids, origins=("target",) * len(ids), stop=stop, seconds={**seconds, "first": 0.0})

    eager: Callable[[Prompt], Trace] = partial(decode_plain, verifier, max_new_tokens=count)
    rungs = [Rung(name="target eager", answer=eager), Rung(name="target generate()", answer=library)]
    for row in live.rows:
        early = 0 if row.prefill_mode == "none" else live.prefill_draft_len
        settings = LiveConfig(
            gamma=live.gamma, max_new_tokens=count, prefill_draft_len=early, prefill_mode=row.prefill_mode
        )
        rungs.append(speculative(row.name, verifier, drafters[row.drafter], settings))
    return rungs


def _settings(config: BenchmarkConfig) -> dict[str, Any]:
    return {
        "max_new_tokens": config.max_new_tokens,
        "dtype": config.pair.dtype,
        "device": config.pair.device,
        "threads": config.pair.threads,
        "repeats": config.live.repeats,
        "order": config.live.order,
        "machine": provenance()["cpu"],
    }
