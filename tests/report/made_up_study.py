"""A whole study that never happened: twenty invented drafters in every kind of row and trace. Never cite them."""

import math
from pathlib import Path

import numpy as np

from tests.report.made_up import BASELINE, STREET, certificate, rows, write_run
from xmsd_jax.report.gallery import StoredTrace, write_traces
from xmsd_jax.runs import Row

SPLIT = "test split (made up)"
GAMMA = 5
# name: per-token acceptance rolled out, free tokens (phase 1), whether it predicts states, offset
DRAFTERS = {
    "template": (0.22, 5.9, False, None),
    "n-gram": (0.62, None, False, None),
    "n-gram (ride)": (0.62, 6.8, False, None),
    "identity(drafter, 0)": (0.05, 0.3, True, 0),
    "identity(target, 1)": (0.21, None, True, 1),
    "L1": (0.17, 3.8, True, 0),
    "L2": (0.22, 4.7, True, 0),
    "L3": (0.24, 4.9, True, 0),
    "L4": (0.24, 4.6, True, 0),
    "L5 (own)": (0.11, None, True, 1),
    "L5 (synced)": (0.43, None, True, 1),
    "B1": (0.48, None, True, 1),
    "L5F (own)": (0.45, None, True, 1),
    "L5F (synced)": (0.56, None, True, 1),
    "L1+L5F": (0.55, 3.8, True, 1),
    "L2+L5F": (0.56, 4.7, True, 1),
    "L3+L5F": (0.56, 4.9, True, 1),
    "L4+L5F": (0.55, 4.6, True, 1),
}
ORIGINAL = {"L1+L5F": 1.54, "L2": 1.56, "L3": 1.56, "L4": 1.55, "L5F-only": 1.45, "B1-only": 1.31}
TRAINED = {"L1": 9, "L2": 12, "L4": 14, "L5": 20, "B1": 31, "L5F": 38}


def study_rows() -> list[Row]:
    """Everything of `made_up.rows`, and each further kind of row."""
    made = [*rows(), *live_rows(), *share_rows(), *offline_rows(), *gamma_rows(), *part_rows(), *training_rows()]
    return [*made, *original_rows()]


def live_rows() -> list[Row]:
    """Lines of the main table that `made_up.rows` does not have."""
    made = []
    for name, (right, free, *_) in DRAFTERS.items():
        if name in ("template", "n-gram"):
            continue
        settings = {"clips": STREET, "max_new_tokens": 64, "dtype": "float32", "gamma": GAMMA}
        figures = {"iterations": 36.0 / _tau(right), "tau": _tau(right), "n_free": free, "vision_ms": 21.4}
        figures |= {"prefill_ms": 62.0, "decode_ms": 182.0 / _tau(right) + 8.0}
        made += [
            Row(row=name, metric=metric, value=value, n=64, settings=settings) for metric, value in figures.items()
        ]
        value = 263.6 / (91.4 + 182.0 / _tau(right))
        made.append(
            Row(row=name, metric="speedup", value=value, low=value - 0.06, high=value + 0.07, n=64, baseline=BASELINE,
                settings=settings)
        )  # fmt: skip
        made += certificate(name, STREET, 64)
    return made


def share_rows() -> list[Row]:
    """S_k in all ways of counting; L5F (synced) live differs from its walk."""
    made = []
    for name, (right, _, states, _) in DRAFTERS.items():
        ways = {"rolled out, all anchors": right + 0.06, "rolled out, visited anchors": right}
        if states:
            ways["teacher-forced, all anchors"] = min(0.93, right + 0.25)
        if "L5F" in name or name in ("n-gram", "B1"):
            ways["live, visited anchors"] = right + 0.02 * (name == "L5F (synced)")
        for how, rate in ways.items():
            shares = [min(1.0, rate**k * (1 + 0.05 * k)) for k in range(1, GAMMA + 1)]
            settings = {"clips": SPLIT, "how": how, "shares": shares}
            if how != "live, visited anchors":
                settings |= {"lows": [0.94 * s for s in shares], "highs": [min(1.0, 1.06 * s) for s in shares]}
            made.append(Row(row=name, metric="S_k", value=shares[0], n=4711, settings=settings))
    return made


def offline_rows() -> list[Row]:
    """Metrics of the evaluation, for state drafters at both offsets."""
    made = []
    for at, (name, (right, free, states, offset)) in enumerate(DRAFTERS.items()):
        here = {"clips": SPLIT}
        for other in (0, 1) if states else ():
            top1 = right if other == offset else right / 3
            values = {f"accept@0.{x}": max(0.0, 1.0 - x / 110 - at / 60) for x in (80, 85, 90, 95)}
            values |= {"cosine": 0.7 + 0.01 * at, "mse": 0.3, "top1": top1, "top5": top1 + 0.2, "top10": top1 + 0.3}
            if other == offset:
                values |= {"first_top1": min(1.0, right + 0.1), "consecutive": 1 / (1 - right)}
            made += [_around(name, metric, value, {**here, "offset": other}) for metric, value in values.items()]
        if free is not None:
            made.append(_around(name, "n_free_offline", free, here))
        for gamma in (3, GAMMA):
            made.append(_around(name, "tau_offline", _tau(right, gamma), {**here, "gamma": gamma}))
    return made


def gamma_rows() -> list[Row]:
    """Predicted speed-up over draft length."""
    made = []
    for name, (right, *_) in DRAFTERS.items():
        gammas = list(range(9))
        values = [1.0, *(1.3 * _tau(right, g) / (1.2 + 0.09 * g) - 0.1 for g in gammas[1:])]
        best = int(np.argmax(values))
        settings = {"clips": SPLIT, "gammas": gammas, "values": values, "best": best}
        made.append(
            Row(row=name, metric="speedup_by_gamma", value=values[best], kind="predicted", baseline=BASELINE,
                settings=settings)
        )  # fmt: skip
    return made


def part_rows() -> list[Row]:
    """Milliseconds by part, predicted and measured; L1 was predicted only."""
    made = []
    for at, (name, (right, free, *_)) in enumerate({BASELINE: (0.0, None), **DRAFTERS}.items()):
        iterations = 36.0 / _tau(right)
        parts = {"vision": 21.4, "prefill": 60.2, "verify": 5.1 * iterations, "host": 0.4 * iterations}
        if name != BASELINE:
            parts |= {"lane": 9.0 * bool(free), "first": 5.0 * bool(free), "draft": 1.1 * iterations}
            parts |= {"sync": 0.6 * iterations * ("synced" in name)}
        for kind in ("predicted",) if name == "L1" else ("predicted", "measured"):
            for part, value in parts.items():
                off = 1 + 0.02 * math.sin(at) + 0.03 * (part == "verify") if kind == "measured" else 1
                settings = {"clips": STREET, "part": part}
                made.append(Row(row=name, metric="part_ms", value=value * off, unit="ms", kind=kind, settings=settings))
    return made


def training_rows() -> list[Row]:
    """Curves of adapters; EAGLE types have a validation τ, L5F was exported past its lowest loss."""
    made = []
    for at, (name, count) in enumerate(TRAINED.items()):
        epochs = list(range(1, count + 1))
        train = [0.4 + 0.1 * at + 0.5 * math.exp(-e / 4) for e in epochs]
        validation = [value + 0.03 + 0.002 * max(0, e - count + 4) for e, value in zip(epochs, train, strict=True)]
        series = {"training loss": (train, min(train)), "validation loss": (validation, min(validation))}
        chosen = int(np.argmin(validation)) + 1
        if name in ("B1", "L5F"):
            tau = [1.2 + 0.9 * (1 - math.exp(-e / 9)) for e in epochs]
            series["validation tau"] = (tau, max(tau))
            chosen = count
        for words, (values, best) in series.items():
            settings = {"series": words, "epochs": epochs, "values": values, "chosen": chosen}
            made.append(Row(row=name, metric="training_curve", value=best, settings=settings))
    return made


def original_rows() -> list[Row]:
    """The study's own model."""
    settings = {"clips": "original study", "max_new_tokens": 50}
    return [
        Row(row=row, metric="speedup", value=value, kind="original", baseline="the study's target", settings=settings)
        for row, value in ORIGINAL.items()
    ]


def spans_of(row: str) -> list[dict]:
    """What the lanes did in one invented answer."""
    spans = [_span("target", "vision", 0.0, 0.0214), _span("target", "prefill", 0.0214, 0.0816)]
    now, steps, draft = 0.0816, 36, 0.0
    if row != BASELINE:
        steps, draft = 12, 0.0011
    if "+L5F" in row:
        spans += [_span("drafter", "drafter vision", 0.0, 0.006), _span("drafter", "drafter prefill", 0.006, 0.03)]
        spans += [_span("drafter", "drafter step", 0.03 + 0.004 * i, 0.034 + 0.004 * i) for i in range(7)]
        spans += [_span("drafter", "prefill_draft", 0.058, 0.0582), _span("target", "first", now, now + 0.006)]
        now += 0.006
    for _ in range(steps):
        if draft:
            ready = now + ("+L5F" in row) * draft / 2
            spans += [_span("drafter", "sync", now, ready)] if ready > now else []
            spans.append(_span("drafter", "draft", ready, now + draft))
        spans.append(_span("target", "verify" if draft else "decode", now + draft, now + draft + 0.005))
        now += draft + 0.0054
        spans.append(_span("host", "host", now - 0.0004, now))
    return spans


def write_study(run_dir: Path, made: list[Row] | None = None) -> Path:
    """Write the whole study: results, traces (three rows with spans), gallery."""
    write_run(run_dir, study_rows() if made is None else made)
    for row in (BASELINE, "n-gram", "L2+L5F", "L1"):
        free = 7 if "+" in row else 0
        origins = ["prefill-draft"] * free + (["target"] if row == BASELINE else ["draft", "draft", "target"]) * 37
        trace = {"ids": list(range(37)), "origins": origins[:37], "prefill_drafted": list(range(free)), "n_free": free}
        trace |= {"iterations": [] if row == BASELINE else [{}] * 12, "seconds": {}, "stop": "eos"}
        if row != "L1":
            trace["spans"] = spans_of(row)
        stored = [
            StoredTrace(row=row, clip=clip, sequence="street-1", question="What is happening?", trace=held)
            for clip, held in (("scene-004", {**trace, "spans": []}), ("scene-003", trace))
        ]
        write_traces(run_dir, row, stored)
    return run_dir


def _tau(right: float, gamma: int = GAMMA) -> float:
    return sum(right**k for k in range(gamma + 1))


def _around(row: str, metric: str, value: float, settings: dict) -> Row:
    return Row(row=row, metric=metric, value=value, low=0.97 * value, high=1.03 * value, n=1100, settings=settings)


def _span(lane: str, part: str, start: float, stop: float) -> dict:
    return {"lane": lane, "part": part, "start": start, "stop": stop}
