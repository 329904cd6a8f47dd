"""The figures of `extract_speed` as rows, beside what is asked for, and as a table."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from xmsd_jax.config import dump
from xmsd_jax.data.made_shape import MadeShape
from xmsd_jax.runs import Row

READING = "reading"
BASELINE = "one answer at a time through generate(output_hidden_states=True), same run"
WHOLE_PROMPTS = "the whole prompt read for every question"
PER = 160
"""Answers that the seconds of parts are given for, whatever a batch held."""
BOTH, EVENTS = "both models", "events"
FULL_TOKENS, FULL_EVENTS = 50, 10_000_000
"""New tokens an answer, and events a second of a recording, that the figures are asked of."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a figure of the 7B pair in NF4 on one H200 must reach."""

    bound: float
    at_most: bool = False

    def reached(self, value: float) -> bool:
        """Whether the value is on the right side."""
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        return f"{'at most' if self.at_most else 'at least'} {self.bound:g}"


ASKED = {
    (BOTH, "answers_per_second"): Asked(bound=12),
    (BOTH, "speedup"): Asked(bound=10),
    ("target", "prefix_speedup"): Asked(bound=3),
    (BOTH, "device_idle_share"): Asked(bound=0.05, at_most=True),
    (BOTH, "study_minutes"): Asked(bound=75, at_most=True),
    (EVENTS, "cut_and_render"): Asked(bound=20),
}


def result_rows(found: Mapping[str, Any], config: Any) -> list[Row]:
    """Every figure as a row; `found`: part -> its numbers, and `pair` where any part but `cut` is there."""
    if "pair" not in found:
        rows = _Rows({}, config)
        _cut_rows(rows, found["cut"])
        return rows.made
    rows = _Rows(_shared(found["pair"], config), config)
    for which in ("target", "drafter"):
        facts = found["pair"][which]
        rows.add(which, "weights_gb", facts["bytes"] / 1e9, "GB", footprint=facts["footprint"])
    rows.add(BOTH, "build_seconds", found["pair"]["build_seconds"], "s")
    if "speed" in found:
        _speed_rows(rows, found["speed"], config, built=found["pair"]["build_seconds"])
    if "single" in found:
        _single_rows(rows, found["single"])
    if "speed" in found and "single" in found:
        _speedup(rows, found["speed"]["warm"], found["single"])
    if "prefix" in found:
        _prefix_rows(rows, found["prefix"], config)
    if "cut" in found:
        _cut_rows(rows, found["cut"])
    return rows.made


def table(rows: Sequence[Row]) -> str:
    """The figures, one line each, with what is asked for beside it."""
    lines = []
    for row in rows:
        spread = "" if row.low is None else f" ({row.low:.4g} to {row.high:.4g})"
        part = f" [{row.settings['part']}]" if "part" in row.settings else ""
        against = "" if row.baseline is None else f" against {row.baseline}"
        kind = "" if row.kind == "measured" else f" ({row.kind})"
        lines.append(
            f"{row.row:20} {row.metric:34} {row.value:>10.4g} {row.unit}{spread}{part}{against}{kind}{_verdict(row)}"
        )
    return "\n".join(lines)


def _verdict(row: Row) -> str:
    asked = ASKED.get((row.row, row.metric))
    if asked is None:
        return ""
    if "reached" not in row.settings:
        return f"; asked: {asked}, at full size"
    return f"; asked: {asked}: {'reached' if row.settings['reached'] else 'MISSED'}"


class _Rows:
    """Collects rows that share settings; a verdict is given only at the size that its figure is asked of."""

    def __init__(self, shared: Mapping[str, Any], config: Any) -> None:
        self.shared, self.made = shared, list[Row]()
        self.full_pair = config.shape == MadeShape() and config.max_new_tokens >= FULL_TOKENS
        self.full_recording = config.cut_events_per_second >= FULL_EVENTS

    def add(self, row: str, metric: str, value: float, unit: str, *, spread: Sequence[float] = (), **more: Any) -> None:
        """One row; `spread`: the values that `value` stands for; of `more`, what is no field of a row is a setting."""
        known = {one.name for one in dataclasses.fields(Row)}
        fields = {name: more.pop(name) for name in list(more) if name in known}
        if spread:
            fields |= {"low": min(spread), "high": max(spread), "n": len(spread)}
        asked = ASKED.get((row, metric))
        if asked is not None:
            more["asked"] = str(asked)
            is_full = self.full_recording if row == EVENTS else self.full_pair
            more |= {"reached": asked.reached(value)} if is_full else {}
        self.made.append(
            Row(row=row, metric=metric, value=value, unit=unit, settings={**self.shared, **more}, **fields)
        )


def _shared(pair: Mapping[str, Any], config: Any) -> dict[str, Any]:
    return {
        "device": pair["device"],
        "dtype": config.dtype,
        "quantisation": pair["target"]["quantisation"],
        "weights": "random",
        "shape": dump(config.shape),
        "prompt_tokens": {
            which: {"visual": pair[which]["visual_tokens"], "text": pair[which]["text_tokens"]}
            for which in ("target", "drafter")
        },
        "N": config.max_new_tokens,
        "clips": config.made.count,
        "distinct_clips": config.made.distinct,
        "questions": len(config.questions),
        "batch": "planned from free memory" if config.batch is None else config.batch,
        "expand": config.expand,
        "versions": pair["versions"],
    }


def _speed_rows(rows: _Rows, speed: Mapping[str, Any], config: Any, *, built: float) -> None:
    first, warm = speed["first"], speed["warm"]
    rates = [one["rows"] / one["seconds"] for one in warm]
    rate, extra = mean(rates), max(0.0, first["seconds"] - mean(one["seconds"] for one in warm)) + built
    about = {
        "answers": first["rows"],
        "batch_rows": [clips * len(config.questions) for clips in warm[-1]["batches"]],
        "plan": warm[-1]["plan"],
        "expanded": speed["expanded"],
    }
    excluded = "the first extraction of this process (compiling, first use of kernels), making the pair and the clips"
    rows.add(BOTH, "answers_per_second", rate, "answers/s", spread=rates, excluded=excluded, **about)
    rows.add(
        BOTH, "answers_per_second_all_included", first["rows"] / (first["seconds"] + built), "answers/s",
        included="making the pair on the device, the first extraction of this process", **about,
    )  # fmt: skip
    rows.add(BOTH, f"seconds_per_{PER}", PER / rate, "s", **about)
    rows.add(
        BOTH, "study_minutes", (config.study_answers / rate + extra) / 60, "min", kind="extrapolated",
        study_answers=config.study_answers, once_seconds=extra, **about,
    )  # fmt: skip
    idle = [one["gap_seconds"] / one["span_seconds"] for one in warm]
    between = "from a batch's last kernel to the next one's first, of the time from first to last batch"
    rows.add(BOTH, "device_idle_share", mean(idle), "", spread=idle, counted=between, **about)
    outside = [1 - (one["span_seconds"] - one["gap_seconds"]) / one["seconds"] for one in warm]
    counted = "as above, and from the call to the first batch, and from the last batch to the finished store"
    rows.add(BOTH, "device_idle_share_of_all", mean(outside), "", spread=outside, counted=counted, **about)
    rows.add(BOTH, "rows_per_batch", max(about["batch_rows"]), "rows", **about)
    rows.add(BOTH, "peak_gpu_gb", max(one["peak_bytes"] for one in warm) / 1e9, "GB", **about)
    rows.add(BOTH, "store_bytes_per_answer", first["store_bytes"] / first["rows"], "B", store=first["store_bytes"])
    for which in ("target", "drafter"):
        rows.add(which, "mean_tokens", mean(one[f"{which}_len"] for one in warm), "tokens", **about)
    _part_rows(rows, speed["parts"], config, seconds_per=PER / rate, gaps=mean(idle))


def _part_rows(rows: _Rows, parts: Mapping[str, Any], config: Any, *, seconds_per: float, gaps: float) -> None:
    """Seconds of each part of one batch, apart from the others, for so many answers."""
    answers = parts["clips"] * len(config.questions)
    about = {"batch_rows": answers, "repeats": 1}
    for name, seconds in parts["seconds"].items():
        rows.add("one batch", f"part_seconds_per_{PER}", seconds * PER / answers, "s", part=name, **about)
    on_device = sum(seconds for name, seconds in parts["seconds"].items() if name != READING)
    rows.add(
        BOTH, "wall_over_parts", seconds_per / (on_device * PER / answers), "",
        baseline="the models' parts of one batch, nothing read or written", **about,
    )  # fmt: skip
    if parts.get("kernel_seconds"):
        share = parts["kernel_seconds"] / on_device
        rows.add("one batch", "kernel_share", share, "", counted="sum of kernel times", table="kernels.txt", **about)
        idle = 1 - (1 - gaps) * min(1.0, share)
        counted = "between batches, and between the kernels of a batch by kernel_share"
        rows.add(BOTH, "device_idle_share_with_kernels", idle, "", counted=counted, **about)


def _single_rows(rows: _Rows, single: Mapping[str, Any]) -> None:
    about: dict[str, Any] = {
        "counted": "pixels, vision, generate, states to the host",
        "excluded": "a first answer, reading clips",
    }
    for which in ("target", "drafter"):
        numbers = single[which]
        rows.add(
            which, "alone_seconds", median(numbers["seconds"]), "s", spread=numbers["seconds"],
            lengths=numbers["lengths"], **about,
        )  # fmt: skip
    rows.add(BOTH, "alone_answers_per_second", 1 / _alone(single, median), "answers/s", **about)
    for which in ("target", "drafter"):
        found = single[which]["agreement"]
        same = {name: found[name] for name in ("rows", "batch_rows", "margins_ulp")}
        told = "random weights: near-ties are common, and one changes all ids that follow it"
        for metric in ("same_choices", "same_ids", "same_rows"):
            rows.add(
                which, f"{metric}_share", found[metric], "", baseline="generate() of each row alone", note=told, **same
            )


def _speedup(rows: _Rows, warm: Sequence[Mapping[str, Any]], single: Mapping[str, Any]) -> None:
    rates = [one["rows"] / one["seconds"] for one in warm]
    spread = [min(rates) * _alone(single, min), max(rates) * _alone(single, max)]
    rows.add(
        BOTH, "speedup", mean(rates) * _alone(single, median), "x", low=spread[0], high=spread[1],
        n=len(single["target"]["seconds"]), baseline=BASELINE,
        note="extraction also reads clips, computes the synced states and writes a store; the baseline does not",
    )  # fmt: skip


def _alone(single: Mapping[str, Any], of: Any) -> float:
    """Seconds that both models take for one answer."""
    return float(of(single["target"]["seconds"]) + of(single["drafter"]["seconds"]))


def _prefix_rows(rows: _Rows, times: Mapping[str, Sequence[float]], config: Any) -> None:
    about = {"prefix_clips": config.prefix_clips, "prompts": config.prefix_clips * len(config.questions)}
    for name in ("shared", "whole"):
        ms = [seconds * 1e3 for seconds in times[name]]
        rows.add("target", f"prefill_ms_{name}", median(ms), "ms", spread=ms, **about)
    ratios = [whole / shared for shared, whole in zip(times["shared"], times["whole"], strict=True)]
    value = median(times["whole"]) / median(times["shared"])
    rows.add("target", "prefix_speedup", value, "x", spread=ratios, baseline=WHOLE_PROMPTS, **about)


def _cut_rows(rows: _Rows, cut: Mapping[str, float]) -> None:
    about = {"cores": 1, "recording_events": cut["events"] * 1e6, "bytes_per_event": cut["bytes_per_event"]}
    for metric in ("cut", "render", "cut_and_render", "recording"):
        rows.add(EVENTS, metric, cut[metric], "M events/s", **about)
