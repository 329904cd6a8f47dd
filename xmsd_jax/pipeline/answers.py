"""Stage `evaluate` for recorded answers: what text-only drafters are worth on answers that a target really gave.

A text-only drafter sees nothing but ids, so its acceptance on recorded greedy answers is exactly what a live run with
that target would see. Fit and test must not share a record: both parts may come from one file, as its two halves.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xmsd_jax.config import ConfigError, UserError, dump
from xmsd_jax.data.clips import Clip
from xmsd_jax.data.events import Events
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.decoding.ngram import NGram
from xmsd_jax.decoding.ports import Drafter, Prompt
from xmsd_jax.decoding.text_anchors import after, text_anchors, text_free
from xmsd_jax.decoding.text_drafters import Template
from xmsd_jax.metrics.acceptance import Anchors
from xmsd_jax.metrics.counted import Estimate, clusters_of, ratio_of_sums
from xmsd_jax.report.rows import live_rows
from xmsd_jax.runs import Row, Run, provenance, write_results
from xmsd_jax.shapes import TokenIds

ANSWERS = "recorded answers of the original NF4 models"
Part = Literal["all", "first half", "second half"]
_QUESTION, _TARGET, _DRAFTER = "question", "video_llava_ids", "eventgpt_ids"


@dataclass(frozen=True, kw_only=True)
class AnswersConfig:
    """Fit text drafters on recorded answers, test them on others.

    fit, test: JSON files of recorded answers (`read_answers`); the same file may be given twice, with parts that do
    not overlap. fit_part, test_part: which of its answers, in their order. order: most tokens of the n-gram's context;
    gammas: draft lengths of the walk; prefill_draft_len: tokens drafted in phase 1; block: answers per bootstrap
    cluster (neighbouring clips share content); vocabulary: number of real ids.
    """

    fit: Path | None = None
    test: Path | None = None
    fit_part: Part = "all"
    test_part: Part = "all"
    order: int = 8
    gammas: tuple[int, ...] = (1, 2, 3, 4, 5, 8, 12)
    prefill_draft_len: int = 12
    block: int = 50
    vocabulary: int = 32000

    def __post_init__(self) -> None:
        """Raise ConfigError on a number below 1 and on draft lengths that are missing or given twice."""
        for name in ("order", "prefill_draft_len", "block", "vocabulary"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if not self.gammas or min(self.gammas) < 1 or len(set(self.gammas)) < len(self.gammas):
            raise ConfigError(f"gammas: must be different whole numbers from 1 on, at least one, got {self.gammas}")


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedAnswers:
    """Greedy answers to one question, in recording order.

    target_ids: the target's ids of each answer, int32; drafter_ids: the drafter's, or None where none were recorded.
    digest: sha256 of the content: equal for equal records, whatever file they lie in.
    """

    question: str
    target_ids: tuple[TokenIds, ...]
    drafter_ids: tuple[TokenIds, ...] | None
    digest: str

    def part(self, part: Part) -> tuple[TokenIds, ...]:
        """The target's answers of a part; an odd number leaves the second half one longer."""
        half = len(self.target_ids) // 2
        start, stop = {"all": (0, None), "first half": (0, half), "second half": (half, None)}[part]
        return self.target_ids[start:stop]


def read_answers(path: str | Path) -> RecordedAnswers:
    """Read `{"question": text, "video_llava_ids": [[id, ...], ...]}`; "eventgpt_ids", as many answers, may be there.

    Raises:
        UserError: the file is missing or damaged, lacks a key, holds no answer, or an id is no whole number >= 0.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of recorded answers; check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())})") from None
    if not isinstance(content, Mapping) or not {_QUESTION, _TARGET} <= set(content):
        found = ", ".join(content) if isinstance(content, Mapping) else type(content).__name__
        raise UserError(f"{path}: recorded answers need the keys {_QUESTION} and {_TARGET}, got {found or 'none'}")
    question = content[_QUESTION]
    if not isinstance(question, str) or not question:
        raise UserError(f"{path}: {_QUESTION} must be the text that was asked, got {question!r}")
    target = _ids(path, _TARGET, content[_TARGET])
    drafter = _ids(path, _DRAFTER, content[_DRAFTER]) if _DRAFTER in content else None
    if drafter is not None and len(drafter) != len(target):
        raise UserError(f"{path}: each answer has both models' ids, got {len(target)} and {len(drafter)}")
    digest = hashlib.sha256(json.dumps([question, content[_TARGET]]).encode()).hexdigest()
    return RecordedAnswers(question=question, target_ids=target, drafter_ids=drafter, digest=digest)


def _ids(path: str | Path, key: str, answers: Any) -> tuple[TokenIds, ...]:
    if not isinstance(answers, list) or not answers:
        raise UserError(f"{path}: {key} must list at least one answer, got {answers!r:.60}")
    for row, ids in enumerate(answers):
        if not isinstance(ids, list) or not ids or not all(type(i) is int and 0 <= i < 1 << 31 for i in ids):
            raise UserError(f"{path}: {key}[{row}] must be a list of token ids, whole numbers >= 0, got {ids!r:.60}")
    return tuple(np.array(ids, np.int32) for ids in answers)


def text_prompt(question: str) -> Prompt:
    """The prompt of a text-only drafter: its clip holds nothing."""
    nothing = np.empty(0)
    events = Events(
        x=nothing.astype(np.uint16), y=nothing.astype(np.uint16), p=nothing.astype(np.uint8),
        t=nothing.astype(np.int64), height=1, width=1,
    )  # fmt: skip
    clip = Clip(
        name="recorded", sequence="recorded", events=events, video=np.empty((0, 1, 1, 3), np.uint8),
        frame_times_us=nothing.astype(np.int64), start_us=0, stop_us=1,
    )  # fmt: skip
    index = QUESTIONS.index(question) if question in QUESTIONS else -1
    return Prompt(clip=clip, question=question, question_index=index)


def sources(config: AnswersConfig) -> tuple[RecordedAnswers, RecordedAnswers]:
    """Read what is fitted on and what is tested.

    Raises:
        UserError: a file is not given or does not fit, or fit and test share records or answer different questions.
    """
    if config.fit is None or config.test is None:
        raise ConfigError("fit and test: both need a file of recorded answers; give --fit FILE --test FILE")
    fit, test = read_answers(config.fit), read_answers(config.test)
    overlap = config.fit_part == config.test_part or "all" in (config.fit_part, config.test_part)
    if fit.digest == test.digest and overlap:
        raise ConfigError(
            f"fit and test must not share a record, got {config.fit_part} and {config.test_part} of the same answers; "
            "set fit_part to first half and test_part to second half"
        )
    if fit.question != test.question:
        raise ConfigError(f"fit and test must answer one question, got {fit.question!r} and {test.question!r}")
    if not fit.part(config.fit_part) or not test.part(config.test_part):
        raise ConfigError("fit_part and test_part: the first half of one answer is empty; give more answers")
    return fit, test


def run(config: AnswersConfig, run_dir: Path, fresh: bool = False) -> list[Row]:
    """Write results.json into `run_dir` and print the table; seconds, so that it is always made anew.

    Raises:
        UserError: a file is not given or does not fit, or fit and test share records.
    """
    fit, test = sources(config)
    opened = Run.open(run_dir, config)
    fitted, tested = fit.part(config.fit_part), test.part(config.test_part)
    prompt = text_prompt(test.question)
    training = {prompt.question_index: fitted}
    drafters: tuple[Drafter, ...] = (
        Template.fit(training, vocabulary=config.vocabulary),
        NGram.fit(training, vocabulary=config.vocabulary, order=config.order),
    )
    clusters = clusters_of(None, len(tested), block=config.block)
    settings = _settings(config, test.question, len(fitted)) | {"clusters": int(clusters.max()) + 1}
    rows = _rows("target", {"tokens": ratio_of_sums([len(ids) for ids in tested], sequences=clusters)}, settings)
    for drafter in drafters:
        prompts = [prompt] * len(tested)
        free = text_free(drafter, tested, prompts, draft_len=config.prefill_draft_len)
        anchors = after(text_anchors(drafter, tested, prompts, gamma=max(config.gammas)), free)
        rows += _drafter_rows(config, drafter.name, anchors, clusters, settings)
    write_results(opened.path, rows, provenance() | {"config": dump(config)})
    print(_table(config, rows, len(fitted), len(tested)))
    print(f"results: {opened.path}/results.json", flush=True)
    return rows


def _settings(config: AnswersConfig, question: str, fit_answers: int) -> dict[str, Any]:
    return {
        "answers": ANSWERS,
        "question": question,
        "fit_part": config.fit_part,
        "fit_answers": fit_answers,
        "test_part": config.test_part,
        "order": config.order,
        "block": config.block,
        "vocabulary": config.vocabulary,
    }


def _drafter_rows(
    config: AnswersConfig, name: str, anchors: Anchors, clusters: np.ndarray, settings: Mapping[str, Any]
) -> list[Row]:
    """Walks from the first token, without phase 1; and what phase 1 alone would give."""
    start = np.zeros(len(anchors.free), np.int64)
    rows: list[Row] = []
    for gamma in config.gammas:
        tau = anchors.tau(gamma, sequences=clusters, start=start)
        rows += _rows(name, {"tau": tau}, {**settings, "gamma": gamma})
    free = ratio_of_sums(anchors.free, sequences=clusters)
    return rows + _rows(name, {"n_free": free}, {**settings, "prefill_draft_len": config.prefill_draft_len})


def _rows(name: str, figures: Mapping[str, Estimate], settings: Mapping[str, Any]) -> list[Row]:
    return live_rows(name, figures, clips=ANSWERS, baseline=None, settings=settings)


def _table(config: AnswersConfig, rows: Sequence[Row], fitted: int, tested: int) -> str:
    """One line a draft length, one column a drafter."""
    told = {(r.row, r.metric, r.settings.get("gamma")): _told(r) for r in rows}
    lines = [
        f"{ANSWERS}: fitted on {fitted} ({config.fit_part}), tested on {tested} ({config.test_part})",
        f"answer tokens: {told['target', 'tokens', None]}",
        f"{'tau, tokens per iteration':<28}{'template':<24}n-gram",
    ]
    for gamma in config.gammas:
        lines.append(f"{f'  gamma {gamma}':<28}{told['template', 'tau', gamma]:<24}{told['n-gram', 'tau', gamma]}")
    free = f"free tokens of {config.prefill_draft_len}"
    lines.append(f"{free:<28}{told['template', 'n_free', None]:<24}{told['n-gram', 'n_free', None]}")
    return "\n".join(lines)


def _told(row: Row) -> str:
    if row.value is None:
        return "-"
    return f"{row.value:.2f}" if row.low is None else f"{row.value:.2f} ({row.low:.2f} to {row.high:.2f})"
