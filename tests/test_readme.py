"""The README's tables are the committed results, and what it points to is there."""

import re
from pathlib import Path
from typing import Any

import pytest

from xmsd_jax.runs import Row, read_results

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COLUMNS = ("iterations", "tau", "n_free", "prefill_ms", "decode_ms", "speedup", "decode_speedup")
TABLES = (
    ("demo_cpu", "held-out street scenes", "", 21),
    ("demo_cpu", "real DAVIS346 recording", "", 21),
    ("study_cpu", "held-out street scenes", "", 23),
    ("live_h100", "recorded answers", "none", 8),
    ("live_h100", "recorded answers", "nf4", 6),
)
SWEEP = ("throughput", "wall_clock_share")


def told(row: Row | None, metric: str) -> str:
    """A number as the README writes it."""
    if row is None or row.value is None:
        return "\u2013"
    if "speedup" not in metric:
        return f"{row.value:.{({'tau': 2, 'decode_ms': 0}).get(metric, 1)}f}"
    if row.row == row.baseline:
        return "1 (baseline)"
    between = "" if row.low is None else f" ({row.low:.2f} to {row.high:.2f})"
    return f"{row.value:.2f}x{between}"


def lines(folder: str, clips: str, quantisation: str = "") -> list[list[str]]:
    """Measured rows of a set; of replayed ones those of a quantisation."""
    rows, _ = read_results(ROOT / "results" / folder)
    kind, about = ("replayed" if quantisation else "measured"), "quantisation"
    rows = [r for r in rows if str(r.settings.get(about, "")).startswith(quantisation)]
    own = {(r.row, r.metric): r for r in rows if r.settings.get("clips") == clips and r.kind == kind}
    names = [name for name in dict.fromkeys(name for name, _ in own) if (name, "speedup") in own]
    return [[name, *(told(own.get((name, metric)), metric) for metric in COLUMNS)] for name in names]


@pytest.mark.parametrize("which", range(len(TABLES)), ids=[" ".join(t[:3]) for t in TABLES])
def test_the_tables_are_the_committed_results(which):
    *of, count = TABLES[which]
    tables = re.findall(r"\| row \| passes .*\n\|---.*\n((?:\|.*\n)+)", README)
    found = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in tables[which].splitlines()]
    assert found == lines(*of)
    assert len(found) == count
    assert len(tables) == len(TABLES)


@pytest.mark.parametrize("folder", ["demo_cpu", "study_cpu", "leakage_cpu", "recorded_answers", "cut_cpu"])
def test_the_results_come_from_a_clean_checkout(folder):
    _, provenance = read_results(ROOT / "results" / folder)
    assert provenance["git"]["dirty"] is False


def test_the_speed_of_training_is_that_of_the_committed_results():
    rows, _ = read_results(ROOT / "results" / "train_h100")
    own = {(r.row, r.metric): r for r in rows}
    table = re.search(r"\| adapter \| ms a step .*\n\|---.*\n((?:\|.*\n)+)", README)
    assert table is not None
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]
    assert [line[0] for line in found] == ["L1", "L2", "L3", "L4", "L5", "B1", "L5F"]
    baseline = {k: min(r.value or 0 for r in rows if (r.row, r.metric) == (k, "torch_step_ms")) for k, *_ in found}
    for kind, *cells in found:
        ratio = own[kind, "speedup"]
        assert cells == [
            f"{own[kind, 'step_ms'].value:.3f}",
            f"{baseline[kind]:.3f}",
            f"{ratio.value:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})",
            f"{own[kind, 'mfu'].value:.0%}",
            f"{own[kind, 'epoch_answers_per_second'].value:,.0f}",
        ]
    by_hand = {
        f"{own['all adapters', 'study_minutes'].value:.1f} min": "seven adapters x 50 epochs",
        f"{own['L5F', 'stream_share_later'].value * 100:.0f} % (first": "stream epoch",
        f"{own['L5F', 'stream_host_gb'].value:.1f} GB": "stream epoch",
        "{:.2f}x, {:.2f}".format(*(own["sweep of 8 x L1", m].value for m in SWEEP)): "sweep",
        f"{own['B1', 'judge_seconds'].value:.1f} s": "11,000 answers rolled out",
        f"L3: {own['L3', 'loss_difference'].value * 1e6:.1f}e-6": "loss curves",
        f"{own['B1', 'loss_difference'].value * 1e3:.1f}e-3": "loss curves",
        f"{own['B1', 'loss_difference'].settings['torch_worst'] * 1e4:.1f}e-4": "loss curves",
        f"{own['B1', 'mfu'].value * 100:.0f} %, {own['L5F', 'mfu'].value * 100:.0f} %": "MFU",
    }
    for figure, line in by_hand.items():
        assert any(line in text and figure in text for text in README.splitlines()), figure


def extraction() -> dict[str, Row]:
    rows, _ = read_results(ROOT / "results" / "extract_h100")
    cut, _ = read_results(ROOT / "results" / "cut_cpu")
    return {row.settings.get("part") or f"{row.row} {row.metric}": row for row in [*rows, *cut]}


def percent(row: Row, digits: int = 1) -> str:
    return f"{(row.value or 0) * 100:.{digits}f} %"


def test_the_speed_of_extraction_is_that_of_the_committed_results():
    own = extraction()
    both = {name.removeprefix("both models "): row for name, row in own.items() if name.startswith("both models ")}
    rate, ratio, prefix = both["answers_per_second"], both["speedup"], own["target prefix_speedup"]
    equal = [f"{(own[f'{w} same_rows_share'].value or 0) * 6:.0f}" for w in ("target", "drafter")]
    weights = [f"{own[f'{which} weights_gb'].value:.1f}" for which in ("target", "drafter")]
    size = both["store_bytes_per_answer"].value or 0
    expected = [
        f"{rate.value:.1f} ({rate.low:.1f} to {rate.high:.1f}); a first, cold run with making the pair "
        f"{both['answers_per_second_all_included'].value:.1f}",
        f"{ratio.value:.0f}x ({ratio.low:.0f} to {ratio.high:.0f}): it gives "
        f"{both['alone_answers_per_second'].value:.2f} answers/s",
        f"{prefix.value:.1f}x ({prefix.low:.1f} to {prefix.high:.1f})",
        f"{percent(both['device_idle_share'], 2)} between batches; counting the gaps between a batch's kernels as "
        f"well, {percent(both['device_idle_share_with_kernels'], 2)}",
        f"{both['study_minutes'].value:.1f} min",
        f"{own['events cut_and_render'].value:.1f} M/s; each event counted once, though in two clips, "
        f"{own['events recording'].value:.1f} M/s",
        f"target {percent(own['target same_choices_share'])}, drafter {percent(own['drafter same_choices_share'])}; "
        f"of 6 answers {equal[0]} and {equal[1]} equal throughout",
        f"{both['peak_gpu_gb'].value:.1f} GB; {weights[0]} and {weights[1]} GB",
        f"{size / 1e6:.2f} MB an answer, {size * 52080 / 1e9:.0f} GB for 52,080",
    ]
    table = re.search(r"\| figure \| asked \| measured \|\n\|---.*\n((?:\|.*\n)+)", README)
    assert table is not None
    assert [line.strip("| ").split(" | ")[2] for line in table[1].splitlines()] == expected
    assert f"written, with nothing beside them: {percent(both['device_idle_share_of_all'])} of so short" in README
    margins = [own[f"{which} same_ids_share"].settings["margins_ulp"] for which in ("target", "drafter")]
    assert max(margins[0] + margins[1]) == 2
    assert rate.settings["batch_rows"] == [160, 160, 160, 120]
    assert rate.settings["expanded"] == {"target": True, "drafter": True}
    assert "H100 80GB" in rate.settings["device"]


def test_the_bridge_s_readme_tells_the_same():
    text, own = (ROOT / "torch_bridge" / "README.md").read_text(), extraction()
    for part in ("vision", "prefill", "decode"):
        seconds = [f"{own[f'{which} {part}'].value:.3f}" for which in ("target", "drafter")]
        assert f"| {seconds[0]} | {seconds[1]} |" in text, part
    models = sum(row.value or 0 for name, row in own.items() if "part" in row.settings and name != "reading")
    per, idle = own["both models seconds_per_160"].value or 0, own["both models device_idle_share_of_all"].value or 0
    told = [
        f"| \u2013 | {own['drafter synced'].value:.3f} |",
        f"{models:.2f} s in all; a run takes {per:.2f} s",
        f"{own['reading'].value:.1f} s of one thread",
        f"these are {idle * 100:.1f} % of the wall clock; without them 160 answers take {per * (1 - idle):.2f} s",
        f"{own['target prefill_ms_shared'].value:.0f} ms\n  instead of {own['target prefill_ms_whole'].value:,.0f}",
    ]
    assert [line for line in told if line not in text] == []


def test_links_lead_to_files():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_figures_of_live_decoding_are_those_of_the_committed_results():
    rows, about = read_results(ROOT / "results" / "live_h100")
    assert "the tree that ran is commit" in about["note"]
    plain, library, ride = "target compiled", "target compiled, library products", "ladder: n-gram (ride)"

    def of(metric: str, row: str = plain, form: str = "NF4", **settings: Any) -> float:
        wanted = {"format": form, **settings}
        found = [r for r in rows if (r.metric, r.row) == (metric, row) and wanted.items() <= r.settings.items()]
        return next(r.value for r in found if r.kind != "predicted" and r.value is not None)

    def bf16(metric: str, row: str = plain) -> float:
        return of(metric, row, "bfloat16")

    def every(metric: str) -> dict[str, float]:
        return {r.row: r.value or 0 for r in rows if r.metric == metric and r.settings["format"] == "bfloat16"}

    off, parts = every("predicted_off_by"), every("iteration_over_parts").values()
    expected = {
        "ms a token, bf16": f"**{bf16('token_ms'):.2f}**; {bf16('decode_1_ms'):.2f} as a pass alone",
        "ms a token, NF4": f"**{of('token_ms', library):.2f}** / **{of('token_ms'):.2f}**; as a pass alone "
        f"{of('pass_ms', library, M=1):.2f} / {of('decode_1_ms'):.2f}",
        "verify-6": f"**{bf16('verify_6_ms'):.2f}** / {of('verify_6_ms'):.2f}, and {of('pass_ms', library, M=6):.1f}",
        "224 linear": " / ".join(f"{of('products_ms', 'linear layers', M=m):.2f}" for m in (1, 6, 16)),
        "iteration over": f"{min(parts):.2f} to {max(parts):.2f}",
        "predicted against": f"{min(off.values()) * 100:.1f} to {max(off.values()) * 100:.1f} %",
        "n-gram, whole answer, against": f"{bf16('speedup', ride):.2f}x",
        "decode part alone": f"{bf16('decode_speedup', ride):.2f}x / {bf16('decode_speedup', 'ladder: n-gram'):.2f}x",
        "`ride` against": f"{bf16('iterations_saved', ride):.2f} passes",
        "n-gram in NF4, whole": f"{of('speedup_over_library', ride):.2f}x",
        "the same, decode alone": f"{of('decode_speedup', ride):.2f}x",
    }
    for line, figure in expected.items():
        assert any(line in text and figure in text for text in README.splitlines()), (line, figure)
    missed = {row for row, share in off.items() if share > 0.05}
    assert missed == {"template (ride)", "n-gram", "n-gram (wait)", "n-gram (ride)"}
