"""Run folder: run.yaml (reloads equal), provenance.json, metrics.jsonl, results.json, one marker a stage.

Every number that leaves a run is a `Row` beside the provenance of the run that made it; a stage is done again only when
its config or its inputs changed.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from xmsd_jax import config as configs
from xmsd_jax.config import UserError
from xmsd_jax.provenance import provenance

__all__ = [
    "Kind",
    "ResultsError",
    "Row",
    "Run",
    "RunFailed",
    "Stage",
    "claim_text",
    "part_of",
    "progress",
    "provenance",
    "read_results",
    "stage_key",
    "write_results",
    "write_text",
]
T = TypeVar("T")
Kind = Literal["measured", "predicted", "replayed", "imposed", "extrapolated", "original"]


class RunFailed(RuntimeError):
    """The run finished but what it must hold does not (a failed certificate): exit code 1."""


class ResultsError(UserError):
    """A results.json that does not fit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One number: `metric` of the row `row`, its interval [`low`, `high`], and how it was obtained.

    `value` is None where the metric does not apply; `baseline` names what a speed-up is against; `settings` hold what
    the number depends on (gamma, N, dtype, machine).
    """

    row: str
    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = ""
    baseline: str | None = None
    kind: Kind = "measured"
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a kind that is not one of `Kind`, an empty name, a number that JSON cannot hold."""
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind of a row must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if not (isinstance(self.row, str) and self.row and isinstance(self.metric, str) and self.metric):
            raise ValueError(f"row and metric must be non-empty text, got {self.row!r}, {self.metric!r}")
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if number is not None and not _is_number(number):
                raise ValueError(f"{name} of {self.row} {self.metric} must be finite or None, got {number!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def write_results(run_dir: str | Path, rows: Sequence[Row], provenance: Mapping[str, Any]) -> Path:
    """Write `<run_dir>/results.json` in one step; returns its path."""
    content = {"rows": [{**dataclasses.asdict(row), "settings": dict(row.settings)} for row in rows]}
    path = Path(run_dir) / "results.json"
    write_text(path, json.dumps({**content, "provenance": dict(provenance)}, indent=1, allow_nan=False) + "\n")
    return path


def read_results(source: str | Path) -> tuple[list[Row], dict[str, Any]]:
    """Rows and provenance of a results.json, given by its path or its run folder.

    Raises:
        ResultsError: the file is missing, cut off, or holds what is not a row.
    """
    path = Path(source) / "results.json" if Path(source).is_dir() else Path(source)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [Row(**row) for row in content["rows"]], dict(content["provenance"])
    except FileNotFoundError:
        raise ResultsError(f"{path}: no results there; run `xmsd benchmark` or `xmsd demo` first") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ResultsError(f"{path}: is not a results.json of this version ({error}); make it again") from None


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file so that readers see the old or the new content, never a part."""
    with _written_beside(Path(path), text) as part:
        part.replace(path)


def claim_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file unless it is there: of several processes that call this, one writes it, and whole."""
    path = Path(path)
    if path.exists():
        return
    with _written_beside(path, text) as part:
        try:
            os.link(part, path)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            part.replace(path)


def part_of(path: Path) -> Path:
    """Where a file is written before it takes its name: no other process, on another machine either, has that path."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")


@contextlib.contextmanager
def _written_beside(path: Path, text: str) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield part
    finally:
        part.unlink(missing_ok=True)


def stage_key(config: Any, *input_fingerprints: str) -> str:
    """sha256 of the config's type and values and of its inputs: equal keys mean equal results."""
    content = [type(config).__name__, configs.dump(config), list(input_fingerprints)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage in progress: its folder, and whether a finished result with the same key lies there already."""

    name: str
    path: Path
    reused: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """An open run folder."""

    path: Path

    @classmethod
    def open(cls, run_dir: str | Path, config: Any) -> "Run":
        """Make (or continue) the run folder and write run.yaml and provenance.json.

        Raises:
            UserError: the folder cannot be made or written.
        """
        path = Path(run_dir)
        try:
            write_text(path / "run.yaml", configs.to_yaml(config))
            write_text(path / "provenance.json", json.dumps(provenance(), indent=1) + "\n")
        except OSError as error:
            raise UserError(f"{path}: run folder cannot be written ({error}); give another --run-dir") from None
        return cls(path=path)

    def log(self, **metrics: Any) -> None:
        """Append one JSON line to metrics.jsonl; a missing number is null, never NaN."""
        line = json.dumps(metrics, allow_nan=False) + "\n"
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line)

    def reopen(self, name: str) -> None:
        """Mark a finished stage as one that was cut off, because its results were found damaged."""
        marker = self.path / name / "stage.json"
        write_text(marker, json.dumps({**_read_marker(marker), "done": False}))

    @contextlib.contextmanager
    def stage(self, name: str, key: str, fresh: bool = False, shared: bool = False) -> Iterator[Stage]:
        """A stage in `<run>/<name>`: print its seconds and mark it done, unless the body raises.

        The body does its work only `if not stage.reused`. A stage with the same key that was cut off finds its folder
        as it was, to continue; with another key, or `fresh`, what a former run of the stage left is removed. `shared`:
        other processes work in the same folder, so nothing is removed and the stage is not marked as done here.

        Raises:
            UserError: shared, and the folder holds the work of another key.
        """
        path = self.path / name
        marker = path / "stage.json"
        before = _read_marker(marker)
        same = before.get("key") == key and not fresh
        if same and before.get("done") is True:
            print(f"{name}: reused from {path} ({before.get('seconds', 0.0):.1f} s when it was made)", flush=True)
            yield Stage(name=name, path=path, reused=True)
            return
        if before and not same and shared:
            raise UserError(f"{path}: other settings began this folder; give another --run-dir")
        if before and not same:  # a folder without a marker is not ours to remove
            aside = path.rename(path.with_name(f".{name}.{os.getpid()}.part"))  # a kill must not leave half of it here
            shutil.rmtree(aside)
        write_text(marker, json.dumps({"key": key, "done": False}))
        start = time.perf_counter()
        yield Stage(name=name, path=path, reused=False)
        seconds = round(time.perf_counter() - start, 3)
        if shared:
            return
        write_text(marker, json.dumps({"key": key, "done": True, "seconds": seconds}))
        self.log(stage=name, seconds=seconds)
        print(f"{name}: {seconds:.1f} s", flush=True)


def _read_marker(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or cut off: the stage is not done
        return {"key": None} if path.exists() else {}
    return content if isinstance(content, dict) else {"key": None}


def progress(iterable: Iterable[T], *, total: int | None = None, label: str | Callable[[], str]) -> Iterator[T]:
    """Pass the items on, showing how far it is on stderr: a bar on a terminal, else a line every 10 %.

    A `label` that may be called is asked anew for each item.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # type: ignore[arg-type]
    told = label if callable(label) else lambda: label
    return _bar(iterable, total, told) if sys.stderr.isatty() else _lines(iterable, total, told)


def _bar(iterable: Iterable[T], total: int | None, label: Callable[[], str]) -> Iterator[T]:
    from rich.console import Console  # here, not above: 0.1 s that `xmsd --help` must not pay
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True)) as bar:
        task = bar.add_task(label(), total=total)
        for item in iterable:
            yield item
            bar.update(task, advance=1, description=label())


def _lines(iterable: Iterable[T], total: int | None, label: Callable[[], str]) -> Iterator[T]:
    start, shown = time.perf_counter(), 0
    for count, item in enumerate(iterable, 1):
        yield item
        tenth = count * 10 // total if total else 0
        if tenth > shown:
            shown = tenth
            seconds = time.perf_counter() - start
            print(f"{label()}: {count}/{total} ({seconds:.0f} s)", file=sys.stderr, flush=True)
