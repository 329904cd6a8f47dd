"""A run that never happened: invented numbers and pictures, to test the report and to look at it. Never cite them."""

from pathlib import Path

import numpy as np

from xmsd_jax.report.gallery import Card, StoredTrace, write_gallery, write_pictures, write_traces
from xmsd_jax.report.rows import certificate_rows, stage_row
from xmsd_jax.runs import Row, write_results

STREET, DAVIS = "held-out street scenes (made up)", "real DAVIS346 recording (made up)"
BASELINE = "target eager"
PROVENANCE = {
    "date_utc": "2000-01-01T00:00:00+00:00",
    "command": ["xmsd", "demo", "--made-up"],
    "git": {"commit": "0" * 40, "dirty": True},
    "python": "3.11.0",
    "versions": {"numpy": "2.0.0", "torch": "2.13.0+cpu", "transformers": "5.17.0"},
    "platform": "Linux-made-up",
    "cpu": "Made-up CPU @ 1 GHz",
    "cores": 2,
    "gpus": [],
}
# row: iterations, tau, n_free, vision, prefill, decode ms, speed-up (low, high), decode-only (low, high)
_TABLE = {
    BASELINE: (36.1, 1.0, None, 21.4, 60.2, 182.0, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    "prompt-lookup": (34.9, 1.03, None, 21.4, 60.3, 201.0, (0.93, 0.90, 0.96), (0.91, 0.87, 0.94)),
    "template": (29.5, 1.22, None, 21.3, 60.1, 178.0, (1.02, 0.97, 1.07), (1.02, 0.96, 1.10)),
    "n-gram": (13.2, 2.74, None, 21.5, 60.2, 84.0, (1.59, 1.48, 1.70), (2.17, 1.98, 2.36)),
    "n-gram + ride": (10.9, 2.61, 6.8, 21.3, 63.0, 68.9, (1.72, 1.60, 1.84), (2.64, 2.40, 2.91)),
    "n-gram + wait": (10.9, 2.61, 6.8, 21.4, 60.4, 75.6, (1.67, 1.56, 1.79), (2.41, 2.19, 2.66)),
}
_METRICS = ("iterations", "tau", "n_free", "vision_ms", "prefill_ms", "decode_ms")


def rows() -> list[Row]:
    """Rows of two clip sets, a predicted line, certificates with a tie, stages, a fact."""
    made = [row for clips, n in ((STREET, 64), (DAVIS, 30)) for row in _rows_of(clips, n)]
    made.append(
        Row(row="n-gram", metric="speedup", value=1.62, kind="predicted", baseline=BASELINE, settings={"clips": STREET})
    )
    made += [stage_row("clips", 21.0, reused=True), stage_row("extract", 55.5), stage_row("benchmark", 71.2)]
    return [*made, Row(row="target", metric="facts_right", value=0.91, n=320)]


def _rows_of(clips: str, n: int) -> list[Row]:
    settings = {"clips": clips, "max_new_tokens": 64, "dtype": "float32"}
    made = []
    for name, (*figures, whole, alone) in _TABLE.items():
        here = settings if name == BASELINE else {**settings, "gamma": 8}
        for metric, value in zip(_METRICS, figures, strict=True):
            spread = (None, None) if value is None or clips == DAVIS else (value * 0.95, value * 1.05)
            made.append(Row(row=name, metric=metric, value=value, low=spread[0], high=spread[1], n=n, settings=here))
        for metric, (value, low, high) in (("speedup", whole), ("decode_speedup", alone)):
            low, high = (None, None) if clips == DAVIS else (low, high)
            cell = {"value": value, "low": low, "high": high, "n": n, "baseline": BASELINE, "settings": here}
            made.append(Row(row=name, metric=metric, **cell))
        if name != BASELINE:
            made += certificate(name, clips, n, ties=int(name == "n-gram"))
    return made


def certificate(name: str, clips: str, n: int, *, ties: int = 0, divergences: int = 0) -> list[Row]:
    """The three counts of one row."""
    entry = {
        "answer": "scene-003, question 2",
        "position": 17,
        "expected": 410,
        "got": 411,
        "margin": 3e-5,
        "allowed": 1e-4,
    }
    made = {
        "answers": n,
        "tie_count": ties,
        "divergence_count": divergences,
        "ties": [{**entry, "verdict": "tie"}] * ties,
        "divergences": [{**entry, "verdict": "divergence", "margin": 2.5}] * divergences,
        "reason": "",
    }
    return certificate_rows(name, made, clips=clips)


def write_run(
    run_dir: Path, made: list[Row] | None = None, *, question: str = "What is happening in the scene?"
) -> Path:
    """Write a whole made-up run: results, traces, gallery with pictures."""
    write_results(run_dir, rows() if made is None else made, PROVENANCE)
    for row, seed in (("n-gram", 1), ("n-gram + ride", 2), (BASELINE, 3)):
        origins = _origins(row, 37, seed)
        trace = {
            "ids": list(range(37)),
            "origins": origins,
            "iterations": [],
            "n_free": 0,
            "seconds": {},
            "stop": "eos",
        }
        stored = StoredTrace(row=row, clip="scene-003", sequence="street-1", question=question, trace=trace)
        write_traces(run_dir, row, [stored])
    write_gallery(run_dir, _cards(run_dir, question))
    return run_dir


def _cards(run_dir: Path, question: str) -> list[Card]:
    text = "A red car drives to the left on a straight road at dusk ; two pedestrians wait at the kerb , and a white"
    pieces = ("A", *(f" {word}" for word in text.split()[1:]), " van", " fol", "lows", " it", " slowly", ".", "")
    made = []
    for clip, source, size in (
        ("scene-003", "rendered street scene", (96, 96)),
        ("davis-0", "real recording", (260, 346)),
    ):
        video, events = _pictures(*size)
        names = write_pictures(run_dir, clip, video, events)
        for row, seed in (("n-gram + ride", 4), ("n-gram", 5)):
            card = Card(
                clip=clip, sequence="street-1", source=source, question=question, row=row, tokens=pieces,
                origins=tuple(_origins(row, len(pieces), seed)), reference="".join(pieces), iterations=9,
                truth="a red car, to the left; dusk; 2 pedestrians" if clip == "scene-003" else "",
                video_png=names[0], event_png=names[1],
            )  # fmt: skip
            made.append(card)
    return made


def _origins(row: str, count: int, seed: int) -> list[str]:
    if row == BASELINE:
        return ["target"] * count
    free = 7 if "ride" in row else 0
    rng = np.random.default_rng(seed)
    return ["prefill-draft"] * free + [("target", "draft")[int(rng.random() < 0.68)] for _ in range(count - free)]


def _pictures(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A grey street with a red box, and the box's edges in red and blue on white."""
    video = np.full((height, width, 3), 96, np.uint8)
    video[: height // 2] = (70, 80, 120)
    events = np.full((height, width, 3), 255, np.uint8)
    top, left = height // 2, width // 3
    video[top : top + height // 8, left : left + width // 4] = (190, 40, 40)
    events[top : top + height // 8, left : left + 3] = (255, 0, 0)
    events[top : top + height // 8, left + width // 4 : left + width // 4 + 3] = (0, 0, 255)
    return video, events
