"""What a benchmark leaves in its run folder for the page, besides results.json: traces and a gallery.

    RUN/traces/<row>.json    {"version": 1, "row": "...", "answers": [{clip, sequence, question, trace}, ...]}
    RUN/gallery.json         {"version": 1, "cards": [{...}, ...]}
    RUN/gallery/*.png        the pictures that the cards name

A trace is `Trace.to_json()` of the live loop, kept as it is; the page reads `origins`, `ids` and `iterations` of it.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from xmsd_jax.config import UserError
from xmsd_jax.report.png import SIGNATURE, encode_png, enlarge
from xmsd_jax.runs import write_text

VERSION = 1
ORIGINS = ("prefill-draft", "draft", "target")
"""Whence a token came: free in the prefill, an accepted draft, or the target's own (bonus or plain decoding)."""
PICTURE_SIDE = 288  # px: three times a small-world frame; a DAVIS frame (346 px) stays as it is


class ReportError(UserError):
    """The run folder does not hold what a report needs; the message says what, where, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One answer of the gallery.

    Attributes:
        clip: name of the clip; cards of one clip share its pictures.
        sequence: of the clip.
        source: what the clip is, in words ("rendered street scene", "real DAVIS346 recording").
        question: as asked.
        row: name of the drafter row that produced the answer, as in results.json.
        tokens: text pieces, spaces included: joined, they are the answer.
        origins: one of ORIGINS per token.
        reference: the answer that target-only decoding gave.
        iterations: verifications that the answer took; None if not known.
        truth: facts of the scene in words, where they are known; "" where not.
        video_png, event_png: file names inside RUN/gallery; "" for none.
    """

    clip: str
    sequence: str
    source: str
    question: str
    row: str
    tokens: tuple[str, ...]
    origins: tuple[str, ...]
    reference: str
    iterations: int | None = None
    truth: str = ""
    video_png: str = ""
    event_png: str = ""

    def __post_init__(self) -> None:
        """Refuse a card whose tokens and origins do not go together."""
        check_origins(self.origins, len(self.tokens), where=f"card of clip {self.clip!r}, row {self.row!r}")

    @property
    def equal(self) -> bool:
        """Whether the pieces spell the reference, white space at the ends aside."""
        return "".join(self.tokens).strip() == self.reference.strip()


@dataclass(frozen=True, kw_only=True)
class StoredTrace:
    """The trace of one answer with the names that it belongs to; `trace` is `Trace.to_json()`."""

    row: str
    clip: str
    sequence: str
    question: str
    trace: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Refuse a trace whose ids and origins do not go together."""
        where = f"trace of clip {self.clip!r}, row {self.row!r}"
        if not {"ids", "origins"} <= set(self.trace):
            raise ReportError(
                f"{where}: a trace holds ids and origins, got {sorted(self.trace)}; run the benchmark again"
            )
        check_origins(self.trace["origins"], len(self.trace["ids"]), where=where)


def check_origins(origins: Sequence[str], count: int, *, where: str) -> None:
    """Raise ReportError unless there are `count` origins, each one of ORIGINS."""
    unknown = sorted(set(origins) - set(ORIGINS))
    if unknown or len(origins) != count:
        raise ReportError(
            f"{where}: each token has one origin of {ORIGINS}, got {len(origins)} origins for {count} tokens"
            + (f" and unknown {unknown}" if unknown else "")
            + "; run the benchmark again"
        )


def write_gallery(run_dir: Path, cards: Iterable[Card]) -> Path:
    """Write RUN/gallery.json (atomic) and return its path."""
    return _write_json(Path(run_dir) / "gallery.json", {"version": VERSION, "cards": [asdict(card) for card in cards]})


def read_gallery(run_dir: Path) -> list[Card]:
    """Read RUN/gallery.json; an empty list where the run has none. Raises ReportError if it is damaged."""
    path = Path(run_dir) / "gallery.json"
    if not path.exists():
        return []
    content = _read_json(path)
    try:
        return [_card(entry) for entry in content["cards"]]
    except (TypeError, KeyError, AttributeError) as error:
        raise ReportError(f"{path}: a card needs {_CARD_FIELDS}, got {error}; run the benchmark again") from error


def write_traces(run_dir: Path, row: str, traces: Sequence[StoredTrace]) -> Path:
    """Write the traces of one row to RUN/traces/<row>.json (atomic) and return the path.

    Raises ReportError if a trace belongs to another row.
    """
    strangers = sorted({trace.row for trace in traces} - {row})
    if strangers:
        raise ReportError(f"traces of {strangers} do not belong into the file of {row!r}; write each row to its own")
    answers = [{k: v for k, v in asdict(trace).items() if k != "row"} for trace in traces]
    return _write_json(
        Path(run_dir) / "traces" / f"{file_name(row)}.json", {"version": VERSION, "row": row, "answers": answers}
    )


def read_traces(run_dir: Path) -> dict[str, list[StoredTrace]]:
    """Read all of RUN/traces/*.json: row -> its traces; empty where the run has none."""
    traces = {}
    for path in sorted((Path(run_dir) / "traces").glob("*.json")):
        content = _read_json(path)
        try:
            row = content["row"]
            traces[row] = [StoredTrace(row=row, **answer) for answer in content["answers"]]
        except (TypeError, KeyError) as error:
            raise ReportError(f"{path}: not a file of traces ({error}); run the benchmark again") from error
    return traces


def write_pictures(
    run_dir: Path, clip: str, video: np.ndarray, events: np.ndarray, *, side: int = PICTURE_SIDE
) -> tuple[str, str]:
    """Write a video frame and an event frame (uint8[y,x,3] each) of `clip` into RUN/gallery.

    Both are enlarged by whole factors until the longer side has `side` pixels. Returns the two file names, as
    `Card.video_png` and `Card.event_png` want them.
    """
    folder = Path(run_dir) / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    names = (f"{file_name(clip)}.video.png", f"{file_name(clip)}.events.png")
    for name, image in zip(names, (video, events), strict=True):
        (folder / name).write_bytes(encode_png(enlarge(image, at_least=side)))
    return names


def read_picture(run_dir: Path, name: str) -> bytes:
    """Read RUN/gallery/`name`. Raises ReportError unless it is a PNG that lies in that folder."""
    folder = (Path(run_dir) / "gallery").resolve()
    path = (folder / name).resolve()
    if path.parent != folder:
        raise ReportError(f"a card's picture must lie in {folder}, got {name!r}; name the file only")
    if not path.is_file() or (content := path.read_bytes())[:8] != SIGNATURE:
        raise ReportError(f"{path} is missing or no PNG; run the benchmark again or drop the picture from its card")
    return content


def file_name(name: str) -> str:
    """Turn any name into a file name that no other name shares: readable part and, where one was needed, a digest."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")


_CARD_FIELDS = tuple(field.name for field in fields(Card))


def _card(entry: Mapping[str, Any]) -> Card:
    """Make a card of its JSON form: lists become tuples."""
    fields_of_card: dict[str, Any] = {**entry, "tokens": tuple(entry["tokens"]), "origins": tuple(entry["origins"])}
    return Card(**fields_of_card)


def _read_json(path: Path) -> dict[str, Any]:
    """Read one of our JSON files and check its version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path}: not readable as JSON ({error}); run the benchmark again") from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise ReportError(f"{path}: version {VERSION} expected, got {version!r}; run the benchmark again")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write in one step; return the path."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    return path
