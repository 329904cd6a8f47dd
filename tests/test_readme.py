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
    ("live_h200", "recorded answers", "none", 9),
    ("live_h200", "recorded answers", "nf4", 6),
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


LIVE = ROOT / "results" / "live_h200"
LIBRARY, RIDE = "target compiled, library products", "ladder: n-gram (ride)"


class Figures:
    """The live engine's figures of a quantisation; predictions do not count."""

    def __init__(self, kept: str) -> None:
        rows, self.about = read_results(LIVE)
        self.rows = [r for r in rows if r.settings.get("format") == kept and r.kind != "predicted"]

    def row(self, metric: str, row: str = "target compiled", **settings: Any) -> Row:
        fit = [r for r in self.rows if (r.metric, r.row) == (metric, row) and settings.items() <= r.settings.items()]
        return next(r for r in fit if r.value is not None)

    def of(self, metric: str, row: str = "target compiled", **settings: Any) -> float:
        return self.row(metric, row, **settings).value or 0

    def between(self, metric: str, *, replayed: bool) -> list[float]:
        """Least and most of a metric over replayed rows, or over imposed ones."""
        found = [r for r in self.rows if r.metric == metric]
        values = [r.value or 0 for r in found if (r.settings["clips"] == "recorded answers") is replayed]
        return [min(values), max(values)]

    def off(self, *, replayed: bool) -> str:
        return "{:.1f} to {:.1f} %".format(*(v * 100 for v in self.between("predicted_off_by", replayed=replayed)))

    def parts(self) -> str:
        """An iteration over its parts."""
        ends = [self.between("iteration_over_parts", replayed=b) for b in (True, False)]
        return "{:.2f} to {:.2f} replayed, {:.2f} to {:.2f} imposed".format(*ends[0], *ends[1])


def interval(row: Row) -> str:
    return f"{row.value:.2f} ({row.low:.2f} to {row.high:.2f})"


def not_told(expected: dict[str, str]) -> dict[str, str]:
    """What the lines of the README's tables that begin so do not say."""
    lines = README.splitlines()
    return {
        words: told
        for words, told in expected.items()
        if told not in next(line for line in lines if line.startswith(f"| {words}"))
    }


def test_the_figures_of_live_decoding_in_bfloat16_are_those_of_the_committed_results():
    live = Figures("bfloat16")
    of = live.of
    assert "the tree that ran is commit" in live.about["note"]
    assert live.about["gpus"][0].startswith("NVIDIA H200")
    alone, drafts = (
        live.row("decode_1_ms"),
        [r for r in read_results(LIVE)[0] if (r.metric, r.row) == ("T_draft_ms", "B1")],
    )
    longer = [r.value or 0 for r in drafts if r.settings["gamma"] == 5 and r.settings["max_new_tokens"] > 50]
    expected = {
        "compiled baseline, ms a token, bf16": f"{of('token_ms', clips='recorded answers'):.2f}; {alone.value:.2f} as "
        f"a pass alone ({alone.low:.2f} to {alone.high:.2f})",
        "verify-6": f"| {of('verify_6_ms'):.2f} / ",
        "iteration over": live.parts(),
        "proposer": f"{of('proposal_ms', 'B1'):.2f} between passes; {longer[0]:.2f} and **{longer[1]:.2f}**",
        "predicted against": live.off(replayed=True),
        "the same, imposed": live.off(replayed=False),
        "n-gram, whole answer, against": f"{of('speedup', RIDE):.2f}x",
        "decode part alone": f"{of('decode_speedup', RIDE):.2f}x / {of('decode_speedup', 'ladder: n-gram'):.2f}x",
        "`ride` against": f"{of('iterations_saved', RIDE):.2f} passes",
        "speculative ids against": f"{of('divergences_without_exact', 'oracle'):.0f} answers differ / none",
        "what `exact` costs": f"{of('exact_cost', 'oracle', of='alone'):.2f}x / "
        f"{of('exact_cost', 'oracle', of='drafted'):.2f}x; NF4",
    }
    assert not_told(expected) == {}
    assert f"cuBLAS {of('pass_ms', LIBRARY, M=6):.2f}" in README
    assert f"{of('token_ms', LIBRARY) / of('token_ms'):.2f} times as fast as compiled PyTorch with cuBLAS" in README
    ratio = of("decode_speedup_over_library", RIDE)
    assert f"answers {of('speedup_over_library', RIDE):.2f}x (1.93 to 2.18) and decodes {ratio:.2f}x" in README
    assert of("exact_divergences", "oracle") == 0


MISSED = [
    ("predicted_off_by", 0.05, 63, [0.3, 0.7, 0.9], "the same, imposed", "over 5 %: L5F at 0.3, 0.7 and 0.9 (N = 50)"),
    ("iteration_over_parts", 1.08, 49, [0.9], "iteration over", "over 1.08: L5F at 0.9 (N = 50)"),
]


@pytest.mark.parametrize(("metric", "most", "count", "shares", "line", "told"), MISSED)
def test_what_is_missed_stands_in_the_table(metric, most, count, shares, line, told):
    rows = [r for kept in ("bfloat16", "NF4") for r in Figures(kept).rows if r.metric == metric]
    over = [(r.settings["format"], r.row, r.settings.get("acceptance")) for r in rows if (r.value or 0) > most]
    assert len(rows) == count
    assert over == [("bfloat16", "L5F (synced)", share) for share in shares]
    assert not_told({line: told}) == {}


def test_the_figures_of_live_decoding_in_nf4_are_those_of_the_committed_results():
    live = Figures("NF4")
    of = live.of
    assert of("divergences_without_exact", "oracle") == of("exact_divergences", "oracle") == 0
    assert live.row("exact_divergences", "oracle").settings["answers"] == 500
    own, library = (
        " / ".join(f"{of('products_ms', name, M=m):.2f}" for m in (1, 6, 16))
        for name in ("linear layers", "linear layers, library products")
    )
    expected = {
        "compiled baseline, ms a token, NF4": f"{of('token_ms', LIBRARY):.2f} / {of('token_ms'):.2f}",
        "a pass over one": f"{interval(live.row('decode_1_ms'))}; bitsandbytes {of('pass_ms', LIBRARY, M=1):.2f}",
        "verify-6": f" / {interval(live.row('verify_6_ms'))}; cuBLAS",
        "224 linear": f"{own}; bitsandbytes {library}",
        "the same, NF4 |": live.parts(),
        "the same, NF4: replayed": f"{live.off(replayed=True)} / {live.off(replayed=False)}",
        "n-gram in NF4, whole": f"{of('speedup_over_library', RIDE):.2f}x",
        "the same, decode alone": f"{of('decode_speedup', RIDE):.2f}x",
        "speculative ids against": "NF4, 500 answers: none / none",
        "what `exact` costs": f"NF4 {of('exact_cost', 'oracle', of='alone'):.2f}x / "
        f"{of('exact_cost', 'oracle', of='drafted'):.2f}x",
    }
    assert not_told(expected) == {}
    assert f"bitsandbytes {of('pass_ms', LIBRARY, M=6):.1f}" in README
