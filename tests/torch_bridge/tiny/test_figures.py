"""The README's figures are those of the committed results."""

from pathlib import Path

import pytest

from xmsd_jax.runs import read_results

ROOT = Path(__file__).resolve().parents[3]
README = ROOT / "torch_bridge" / "tiny" / "README.md"
LINES = {
    ("target", "colour"): "colour of the nearest vehicle",
    ("target", "direction"): "its direction",
    ("target", "time"): "time of day",
    ("target", "vehicles"): "number of vehicles",
    ("drafter", "direction"): "direction of the nearest vehicle",
    ("drafter", "moving"): "number of moving objects",
    ("drafter", "colour, forced"): "colour, forced",
}


def figures(model: str) -> dict[str, tuple[float, int]]:
    rows, _ = read_results(ROOT / "results" / "tiny_pair")
    assert {row.kind for row in rows} == {"measured"}
    own = [row for row in rows if row.row == model]
    return {row.metric.removeprefix("fact accuracy: "): (row.value or 0.0, row.n or 0) for row in own}


def table() -> dict[tuple[str, str], tuple[float, int]]:
    """(model, fact in words) -> (share, n)."""
    cells = [line.strip("| \n").split(" | ") for line in README.read_text().splitlines() if line.startswith("| ")]
    rows = [row for row in cells if len(row) == 4 and row[0] in ("target", "drafter")]
    return {(r[0], r[1]): (float(r[2].split(" %")[0]) / 100, int(r[3].replace(",", ""))) for r in rows}


@pytest.mark.parametrize(("model", "fact"), LINES)
def test_the_readme_states_the_measured_figures(model, fact):
    share, count = table()[model, LINES[model, fact]]
    measured, n = figures(model)[fact]
    assert share == pytest.approx(measured, abs=5.1e-5)
    assert count == n


def test_the_readme_counts_the_drafters_rare_answers_in_the_targets_style():
    share, n = figures("drafter")["answers in the target's style"]
    assert f"{round(share * n)} of the drafter's {n:,} answers name a colour" in " ".join(README.read_text().split())


def test_the_measured_figures_reach_what_is_asked_of_the_pair():
    target, drafter = figures("target"), figures("drafter")
    assert min(target[fact][0] for fact in ("colour", "vehicles", "time", "direction")) >= 0.85
    assert min(drafter[fact][0] for fact in ("direction", "moving")) >= 0.85
    share, n = drafter["colour, forced"]
    assert share < 1 / 6 + 3.1 * (5 / 36 / n) ** 0.5
