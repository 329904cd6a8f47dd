"""One question about one clip, answered with drafts; `xmsd ask`, and the same from Python in three lines:

pair = load_pair()
drafter = load_drafter(pair)
print(answer(pair, drafter, "What do you see happening in this scene?").text)
"""

from dataclasses import dataclass, field
from pathlib import Path

from xmsd_jax.config import ConfigError, UserError, find, load
from xmsd_jax.data.clips import Clip
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.recording import davis_clips
from xmsd_jax.data.store import Store
from xmsd_jax.decoding.certificate import Certificate, certify, compare
from xmsd_jax.decoding.live import LiveConfig, decode
from xmsd_jax.decoding.plain import decode_plain
from xmsd_jax.decoding.ports import Drafter, Prompt
from xmsd_jax.decoding.text_drafters import PromptLookup
from xmsd_jax.decoding.trace import Origin, Trace
from xmsd_jax.pipeline.clips import FileClip, file_clip
from xmsd_jax.pipeline.engine import EngineConfig
from xmsd_jax.pipeline.fitted import fit_drafters, fit_taught
from xmsd_jax.pipeline.live_pair import Lengths, LivePair
from xmsd_jax.pipeline.pair import TINY, PairConfig
from xmsd_jax.pipeline.pieces import OnPiece, Pieces, text_of
from xmsd_jax.pipeline.rows import TEXT, DraftRow
from xmsd_jax.pipeline.trained import load_trained

DEFAULT = "ask/small.yaml"


@dataclass(frozen=True, kw_only=True)
class AskConfig:
    """Who answers, and who drafts.

    row: the drafters, as in a benchmark. fitted_on: a store of `xmsd extract` (RUN/store/train) whose answers template
    and n-gram are fitted on; null: the sentences that the small target was taught, so the small pair only. adapters:
    folder of trained adapters, for rows that name one; their store must be given then. order: longest context of the
    n-gram. engine: how both models decode.
    """

    pair: PairConfig = field(default_factory=PairConfig)
    row: DraftRow = field(default_factory=lambda: DraftRow(drafter="n-gram", prefill_mode="ride"))
    fitted_on: Path | None = None
    adapters: Path | None = None
    gamma: int = 8
    prefill_draft_len: int = 12
    order: int = 8
    max_new_tokens: int = 64
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for lengths below 1, and for drafters that nothing is there to make of."""
        for name in ("gamma", "prefill_draft_len", "order", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.row.auto:
            raise ConfigError(
                f"row: {self.row.name}: auto needs measured times, which ask has not; give gamma a number"
            )
        if self.fitted_on is not None:
            return
        named = {self.row.drafter, self.row.first} - {None}
        if adapters := sorted(str(name) for name in named - set(TEXT)):
            raise ConfigError(
                f"fitted_on: {', '.join(adapters)} need the store they were trained on; name RUN/store/train"
            )
        if self.pair.target != TINY and named - {"prompt-lookup"}:
            raise ConfigError(
                f"fitted_on: {', '.join(sorted(map(str, named)))} must be fitted on answers of {self.pair.target}; "
                "name a store of its answers, or draft with row: {drafter: prompt-lookup}, which needs none"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class AskPair:
    """Both models, loaded, and the config that they were loaded by."""

    config: AskConfig
    live: LivePair


@dataclass(frozen=True, kw_only=True, eq=False)
class AskDrafter:
    """Who drafts in phase 2 (`late`) and in phase 1 (`early`), and how."""

    late: Drafter | None
    early: Drafter | None
    live: LiveConfig
    name: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Answered:
    """One answer. `text` is without the end token and leading spaces; `origins[i]` says where `ids[i]` came from.

    `certificate`: of this answer against target-only decoding, None where it was not asked for.
    """

    text: str
    clip: str
    trace: Trace
    certificate: Certificate | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """Token ids, the end token included."""
        return self.trace.ids

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Of each token: "prefill-draft", "draft" or "target"."""
        return self.trace.origins

    @property
    def tau(self) -> float | None:
        """Tokens per iteration of phase 2; None where there was none."""
        return self.trace.tau

    @property
    def decoded(self) -> int:
        """Tokens that phase 2 emitted: neither the free prefix nor the target's token after the prefill."""
        return max(len(self.ids) - self.trace.n_free - 1, 0)

    @property
    def tokens_per_second(self) -> float | None:
        """`decoded` over the seconds of phase 2; None for an answer that phase 1 has finished."""
        return self.decoded / self.trace.seconds["decode"] if self.decoded else None

    @property
    def drafted_share(self) -> float:
        """Share of the tokens that were drafted and stood."""
        return 1 - self.origins.count("target") / len(self.ids)


def load_pair(config: AskConfig | str | Path = DEFAULT) -> AskPair:
    """Load both models: of a config, a YAML file, or a packaged config by its name.

    Raises:
        UserError: a model, store or adapter that is not there or does not fit.
    """
    if not isinstance(config, AskConfig):
        config = load(AskConfig, find(str(config), "ask"))
    lengths = Lengths(
        gamma=config.gamma, prefill_draft_len=config.prefill_draft_len, max_new_tokens=config.max_new_tokens
    )
    manifest = None if config.fitted_on is None else Store.open(config.fitted_on).manifest
    adapters = {} if manifest is None else load_trained(config.adapters, manifest)
    live = LivePair.load(config.pair, lengths, text={}, adapters=adapters, engine=config.engine)
    models = {"target": live.target, "drafter": live.drafter_model} if config.adapters else {"target": live.target}
    for which, model in models.items():
        if manifest is not None and manifest.revisions[which] != model.fingerprint:
            raise UserError(f"fitted_on: {config.fitted_on}: is of another {which}; name a store of this pair")
    return AskPair(config=config, live=live)


def load_drafter(pair: AskPair) -> AskDrafter:
    """Fit or load what the pair's config names as `row`; adapters are compiled, by an answer that is thrown away."""
    row, live, text = pair.config.row, pair.live, dict[str, Drafter]()
    if {row.drafter, row.first} & set(TEXT):
        text = _text_drafters(pair)
    late = text[row.drafter] if row.drafter in text else live.late_drafter(row)
    early = text[row.first] if row.first in text else live.early_drafter(row)
    drafter = AskDrafter(late=late, early=early, live=live.lengths.config(row), name=row.name)
    if {row.drafter, row.first} - {None, *TEXT}:
        prompt = Prompt(clip=davis_clips()[0], question=QUESTIONS[0], question_index=0)
        decode(live.verifier, late, prompt, drafter.live, prefill_drafter=early)
    return drafter


def answer(
    pair: AskPair,
    drafter: AskDrafter,
    question: str,
    *,
    video: str | Path | None = None,
    events: str | Path | None = None,
    on_piece: OnPiece | None = None,
    check: bool = False,
) -> Answered:
    """Answer a question about a clip.

    Args:
        pair: of `load_pair`.
        drafter: of `load_drafter`.
        question: any; those of `QUESTIONS` are known to template and n-gram.
        video: an .mp4; with `events` the user's clip. Without both it is the first of the shipped recording.
        events: EventGPT's .npy, or .npz of x, y, p, t.
        on_piece: told of the text as it is verified, with its origin; its time is part of the answer's.
        check: also decode with the target alone and compare.

    Raises:
        UserError: an empty question, one file without the other, or a file that cannot be read.
    """
    prompt = _prompt(question, video, events)
    tokenizer = pair.live.target.tokenizer
    stream = Pieces(tokenizer, on_piece or (lambda _text, _origin: None))
    trace = decode(
        pair.live.verifier,
        drafter.late,
        prompt,
        drafter.live,
        prefill_drafter=drafter.early,
        listener=stream.add if on_piece else None,
    )
    stream.close()
    return Answered(
        text=text_of(tokenizer, trace.ids),
        clip=prompt.clip.name,
        trace=trace,
        certificate=_certificate(pair, prompt, trace) if check else None,
    )


def check_asked(question: str, video: str | Path | None = None, events: str | Path | None = None) -> None:
    """Raise UserError for an empty question, one file without the other, or a file that is not there."""
    if not question.strip():
        raise UserError('question: is empty; ask something, as "What do you see happening in this scene?"')
    given = {name: path for name, path in (("video", video), ("events", events)) if path is not None}
    if len(given) == 1:
        ((name, path),) = given.items()
        raise UserError(f"{name}: {path}: a clip is a video and its events; give both files, or neither")
    for name, path in given.items():
        if not Path(path).is_file():
            raise UserError(f"{name}: {path}: no such file; check the path")


def _prompt(question: str, video: str | Path | None, events: str | Path | None) -> Prompt:
    check_asked(question, video, events)
    question = question.strip()
    index = QUESTIONS.index(question) if question in QUESTIONS else -1
    return Prompt(clip=_clip(video, events), question=question, question_index=index)


def _clip(video: str | Path | None, events: str | Path | None) -> Clip:
    if video is None or events is None:
        return davis_clips()[0]
    return file_clip(FileClip(video=Path(video), events=Path(events)))


def _text_drafters(pair: AskPair) -> dict[str, Drafter]:
    config, live = pair.config, pair.live
    if config.fitted_on is not None:
        return fit_drafters(Store.open(config.fitted_on), config.order, live.verifier.vocabulary)
    if config.pair.target != TINY:  # then the row drafts by prompt lookup alone: AskConfig refuses others
        return {"prompt-lookup": PromptLookup(vocabulary=live.verifier.vocabulary)}
    return fit_taught(live.target.tokenizer, live.target.eos_id, config.order, live.verifier.vocabulary)


def _certificate(pair: AskPair, prompt: Prompt, trace: Trace) -> Certificate:
    own = decode_plain(pair.live.verifier, prompt, pair.config.max_new_tokens, margins=True)
    rounding = pair.config.pair.rounding
    return certify(
        [
            compare(
                own.ids,
                trace.ids,
                dtype=rounding,
                margins=own.margins,
                top_logits=own.top_logits,
                answer=prompt.question,
            )
        ]
    )
