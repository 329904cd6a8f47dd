"""The figures of `live_speed` as rows, beside what is asked for, and as a table."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from xmsd_jax.config import dump
from xmsd_jax.data.made_shape import MadeShape
from xmsd_jax.pipeline.engine import LIBRARY
from xmsd_jax.pipeline.extract_rows import Asked
from xmsd_jax.report.rows import is_map_point
from xmsd_jax.runs import Row

EAGER, LADDER = "target eager", "ladder"
FAILED = ("exact_divergences", "walk_differs")
PHASE_2 = ("draft", "sync", "verify", "host")
RIDE, ALONE = "n-gram (ride)", "n-gram"
ASKED = {
    ("none", "token_ms"): Asked(bound=5.0, at_most=True),
    ("nf4", "token_ms by the library"): Asked(bound=4.8, at_most=True),
    ("nf4", "decode_1_ms"): Asked(bound=2.7, at_most=True),
    ("nf4", "verify_6_ms"): Asked(bound=3.2, at_most=True),
    ("nf4", "products_ms 1"): Asked(bound=1.6, at_most=True),
    ("nf4", "products_ms 6"): Asked(bound=1.7, at_most=True),
    ("nf4", "products_ms 16"): Asked(bound=2.3, at_most=True),
    ("nf4", "speedup_over_library"): Asked(bound=1.9),
    ("nf4", "decode_speedup ride"): Asked(bound=1.4),
    ("nf4", "exact_divergences"): Asked(bound=0, at_most=True),
    ("none", "verify_6_ms"): Asked(bound=5.6, at_most=True),
    ("none", "iteration_over_parts"): Asked(bound=1.08, at_most=True),
    ("none", "proposal_ms"): Asked(bound=1.1, at_most=True),
    ("none", "predicted_off_by"): Asked(bound=0.05, at_most=True),
    ("none", "speedup"): Asked(bound=1.6),
    ("none", "decode_speedup ride"): Asked(bound=2.0),
    ("none", "decode_speedup none"): Asked(bound=1.8),
    ("none", "iterations_saved"): Asked(bound=1e-9),  # positive
}


def result_rows(found: Mapping[str, Mapping[str, Any]], config: Any) -> list[Row]:
    """Every figure as a row; `found`: format -> part -> its numbers."""
    rows: list[Row] = []
    for quantisation, parts in found.items():
        made = _Rows(quantisation, config)
        if "passes" in parts:
            _pass_rows(made, parts["passes"])
        ladders = [Row(**row) for part, made_rows in parts.items() if _is_ladder(part) for row in made_rows]
        rows += ladders
        _ladder_rows(made, ladders)
        if "beside" in parts:
            for name, value in parts["beside"].items():
                unit = "s" if name in _SECONDS else ""
                made.add("both lanes", f"beside_{name}", value, unit, drafted=parts["beside"]["drafted"])
        if "exact" in parts:
            _exact_rows(made, parts["exact"])
        rows += made.made
    return rows


def _is_ladder(part: str) -> bool:
    return part == "replayed" or part.startswith("imposed")


def table(rows: Sequence[Row]) -> str:
    """What was asked for, and the other figures of passes, a line each."""
    lines = []
    for row in rows:
        if row.value is None or is_map_point(row) or row.metric not in _SHOWN:
            continue
        spread = "" if row.low is None else f" ({row.low:.3g} to {row.high:.3g})"
        about = " ".join(f"{key} {row.settings[key]}" for key in ("M", "format", "of") if key in row.settings)
        lines.append(f"{row.row:28} {row.metric:22} {row.value:9.4g} {row.unit}{spread} {about}{_verdict(row)}")
    return "\n".join(lines)


_SECONDS = ("target_alone", "target_beside", "lane_alone", "lane_beside", "both", "step")
_SHOWN = (
    "token_ms", "verify_6_ms", "pass_ms", "products_ms", "iteration_over_parts", "proposal_ms",
    "predicted_off_by", "speedup", "decode_speedup", "speedup_over_library", "decode_speedup_over_library",
    "iterations_saved", "beside_kappa", "beside_hidden", "beside_window", "exact_divergences",
    "divergences_without_exact", "exact_cost", "decode_1_ms", "head_ms",
)  # fmt: skip


def _verdict(row: Row) -> str:
    if "asked" not in row.settings:
        return ""
    if "reached" not in row.settings:
        return f"; asked: {row.settings['asked']}, at full size"
    return f"; asked: {row.settings['asked']}: {'reached' if row.settings['reached'] else 'MISSED'}"


class _Rows:
    """Collects rows that share settings; a verdict is given only at the size that its figure is asked of."""

    def __init__(self, quantisation: str, config: Any) -> None:
        self.format, self.made = quantisation, list[Row]()
        self.full = config.shape == MadeShape() and config.dtype == "bfloat16" and config.device.startswith("cuda")
        self.plain = f"target {config.engine.row(config.device.partition(':')[0])}"
        self.by_library = f"{self.plain}, {LIBRARY}"
        self.shared = {
            "dtype": config.dtype,
            "format": "NF4" if quantisation == "nf4" else config.dtype,
            "weights": "random",
            "engine": config.engine.words,
            "shape": dump(config.shape),
        }

    def add(
        self, row: str, metric: str, value: float, unit: str, *, spread: Sequence[float] = (), figure: str = "",
        baseline: str | None = None, **more: Any,
    ) -> None:  # fmt: skip
        """One row; `spread`: the values that `value` stands for; `figure`: its name in ASKED, the metric by default."""
        ends = {"low": min(spread), "high": max(spread), "n": len(spread)} if len(spread) else {}
        asked = ASKED.get((self.format, figure or metric))
        if asked is not None:
            more["asked"] = str(asked)
            more |= {"reached": asked.reached(value)} if self.full else {}
        settings = {**self.shared, **more}
        self.made.append(
            Row(row=row, metric=metric, value=value, unit=unit, baseline=baseline, settings=settings, **ends)
        )


def _pass_rows(rows: _Rows, numbers: Mapping[str, Any]) -> None:
    about = {"device": numbers["device"], "context": numbers["context"], "quantisation": numbers["quantisation"]}
    for name, row in (("eager", EAGER), ("library", rows.by_library), ("engine", rows.plain)):
        if name not in numbers:
            continue
        for part, ms in numbers[name]["prompt"].items():
            rows.add(row, f"{part.replace(' ', '_')}_ms", median(ms), "ms", spread=ms, **about)
        for count, ms in numbers[name]["passes"].items():
            rows.add(row, "pass_ms", median(ms), "ms", spread=ms, M=int(count), **about)
    passes = numbers["engine"]["passes"]
    for count, metric in (("1", "decode_1_ms"), ("6", "verify_6_ms")):
        if count in passes:
            rows.add(rows.plain, metric, median(passes[count]), "ms", spread=passes[count], M=int(count), **about)
    about["counted"] = "all linear layers but the head, one after the other"
    for row, products in (("linear layers", "products"), (f"linear layers, {LIBRARY}", "library products")):
        for count, ms in numbers.get(products, {}).items():
            figure = f"products_ms {count}" if products == "products" else "-"
            rows.add(row, "products_ms", median(ms), "ms", spread=ms, figure=figure, M=int(count), **about)
    about["counted"] = "alone"
    for count, ms in numbers["head"].items():
        rows.add("head", "head_ms", median(ms), "ms", spread=ms, M=int(count), **about)
    del about["counted"]
    for count in (1, 6):
        groups = numbers[f"groups_{count}"]
        for group, spent in groups["groups_us"].items():
            rows.add("one pass", "kernels_us", spent, "us", M=count, of=group, launches=groups["launches"], **about)
    for part, ms in {**numbers["drafter"]["prompt"], "step": numbers["drafter"]["passes"]["1"]}.items():
        rows.add("drafter", f"{part.replace(' ', '_')}_ms", median(ms), "ms", spread=ms, **about)


def _ladder_rows(rows: _Rows, ladders: Sequence[Row]) -> None:
    """What is asked of the ladder as a whole."""
    keys = dict.fromkeys(_key(row) for row in ladders if row.metric == "part_ms")
    for key in keys:
        parts = {kind: _parts(ladders, key, kind == "predicted") for kind in ("predicted", "measured")}
        if not all(parts.values()):
            continue
        about = {"clips": key[1], **({} if key[2] is None else {"acceptance": key[2]})}
        whole = {kind: sum(ms.values()) for kind, ms in parts.items()}
        off = abs(whole["predicted"] / whole["measured"] - 1)
        rows.add(key[0], "predicted_off_by", off, "", **about, ms=whole, parts=parts)
        decoding = {kind: sum(ms.get(part, 0.0) for part in PHASE_2) for kind, ms in parts.items()}
        if parts["measured"].get("draft") and decoding["predicted"]:
            ratio = decoding["measured"] / decoding["predicted"]
            rows.add(key[0], "iteration_over_parts", ratio, "", **about, ms=decoding)
    _asked_speedups(rows, ladders)
    _token_rows(rows, ladders)
    for row in ladders:
        if row.metric == "T_draft_ms" and row.row == "B1" and row.settings.get("gamma") == 5 and row.value is not None:
            rows.add("B1", "proposal_ms", row.value, "ms", gamma=5, parameters="103M at full size")
            break


def _token_rows(rows: _Rows, ladders: Sequence[Row]) -> None:
    """Milliseconds a token of plain decoding, the loop's own time included: of replayed answers, or of imposed ones."""
    for name, figure in ((rows.plain, "token_ms"), (rows.by_library, "token_ms by the library")):
        plain = [row for row in ladders if row.row == name and row.kind != "predicted"]
        found = {(row.metric, row.settings.get("clips")): row.value for row in plain}
        for (metric, clips), decoded in found.items():
            tokens = found.get(("tokens", clips))
            if metric == "decode_ms" and decoded is not None and tokens is not None:
                rows.add(name, "token_ms", decoded / (tokens - 1), "ms", figure=figure, clips=clips)


def _asked_speedups(rows: _Rows, ladders: Sequence[Row]) -> None:
    replayed = {(row.row, row.metric): row for row in ladders if row.kind == "replayed"}
    for name, metric, figure in (
        (RIDE, "speedup", "speedup"),
        (RIDE, "decode_speedup", "decode_speedup ride"),
        (ALONE, "decode_speedup", "decode_speedup none"),
        (RIDE, "speedup_over_library", "speedup_over_library"),
        (RIDE, "decode_speedup_over_library", "-"),
    ):
        row = replayed.get((name, metric))
        if row is not None and row.value is not None:
            told = {"n": row.n, "interval": [row.low, row.high], "kind": "replayed"}
            rows.add(f"{LADDER}: {name}", metric, row.value, "x", figure=figure, baseline=row.baseline, **told)
    both = [replayed.get((name, "iterations")) for name in (ALONE, RIDE)]
    if both[0] is not None and both[1] is not None and both[0].value is not None and both[1].value is not None:
        rows.add(f"{LADDER}: {RIDE}", "iterations_saved", both[0].value - both[1].value, "passes per answer", of=ALONE)


def _key(row: Row) -> tuple[str, Any, Any]:
    return row.row, row.settings.get("clips"), row.settings.get("acceptance")


def _parts(ladders: Sequence[Row], key: tuple[str, Any, Any], is_predicted: bool) -> dict[str, float]:
    found = (r for r in ladders if r.metric == "part_ms" and _key(r) == key and (r.kind == "predicted") == is_predicted)
    return {str(row.settings["part"]): row.value for row in found if row.value is not None}


def _exact_rows(rows: _Rows, numbers: Mapping[str, Any]) -> None:
    for name, metric in (("engine", "divergences_without_exact"), ("exact", "exact_divergences")):
        found = numbers[name]
        about = {"answers": found["answers"], "tokens": found["tokens"], "diverged": found["diverged"]}
        told = "an oracle's drafts against the target alone, its own greedy ids"
        rows.add("oracle", metric, len(found["diverged"]), "answers", counted=told, **about)
    for which in ("alone", "drafted"):
        cost = numbers["exact"]["decode_seconds"][which] / numbers["engine"]["decode_seconds"][which]
        rows.add("oracle", "exact_cost", cost, "x", of=which, baseline="the same without exact")
