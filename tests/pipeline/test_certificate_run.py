"""The committed certificate is over 1,000 held-out questions and every drafter, each in every way that it can draft."""

from collections import Counter
from pathlib import Path

import pytest

from xmsd_jax import config as configs
from xmsd_jax.data.world import WorldConfig, sample_place
from xmsd_jax.pipeline.benchmark import BenchmarkConfig
from xmsd_jax.pipeline.clips import ClipsConfig
from xmsd_jax.pipeline.demo import DemoConfig
from xmsd_jax.pipeline.rows import PHASE_1, PHASE_2, TEXT
from xmsd_jax.runs import Row, read_results

RESULTS = Path(__file__).resolve().parents[2] / "results" / "certificate_cpu"
QUESTIONS = 1000


@pytest.fixture(scope="module")
def config() -> BenchmarkConfig:
    return configs.load(BenchmarkConfig, configs.find("benchmark/certificate.yaml"))


@pytest.fixture(scope="module")
def measured() -> dict[tuple[str, str], Row]:
    rows, _ = read_results(RESULTS)
    return {(row.row, row.metric): row for row in rows if row.kind == "measured"}


def worlds() -> tuple[WorldConfig, WorldConfig]:
    ours = configs.load(ClipsConfig, configs.find("clips/certificate.yaml")).world
    demo = configs.load(DemoConfig, configs.find("demo/small.yaml")).clips.world
    assert ours is not None
    assert demo is not None
    return ours, demo


def test_every_drafter_is_a_row_in_every_way_that_it_can_draft(config):
    first = Counter((row.first, row.prefill_mode) for row in config.live.rows)
    wanted = {(name, mode) for name in (*TEXT, *PHASE_1) for mode in ("ride", "wait")}
    assert wanted - set(first) == set()
    assert {row.drafter for row in config.live.rows if row.first is None} == {*TEXT, *PHASE_2}


def test_the_questions_are_about_places_that_nothing_was_fitted_on(config):
    ours, demo = worlds()
    asked = config.live.clips[0]
    assert ours.sequences[asked.split] * ours.clips_per_sequence * asked.per_clip == QUESTIONS
    assert ours.sequences["train"] == demo.sequences["train"]
    assert (ours.seed, ours.clips_per_sequence) == (demo.seed, demo.clips_per_sequence)
    fitted = {sample_place(demo.seed, s, n).seed for s in ("train", "validation") for n in range(demo.sequences[s])}
    assert fitted & {sample_place(ours.seed, asked.split, n).seed for n in range(ours.sequences[asked.split])} == set()


def test_the_committed_run_compared_every_answer_of_every_row_and_none_diverges(config, measured):
    assert {row.name for row in config.live.rows} == {name for name, metric in measured if metric == "divergences"}
    for row in config.live.rows:
        assert measured[row.name, "answers_compared"].value == QUESTIONS
        assert measured[row.name, "divergences"].value == 0
        assert measured[row.name, "walk_differs"].value == 0
        ties = measured[row.name, "ties"]
        assert ties.value == len(ties.settings["ties"])


def test_the_committed_run_is_that_of_the_config(config):
    _, provenance = read_results(RESULTS)
    assert configs.load(BenchmarkConfig, provenance["config"]) == config
    assert provenance["git"]["dirty"] is False


def test_the_fastest_drafter_decodes_more_than_1_3_times_as_fast_as_the_best_plain_row(measured):
    speeds = [row for (_, metric), row in measured.items() if metric == "decode_speedup"]
    plain = [row.row for row in speeds if row.row.startswith("target ")]
    assert {row.baseline for row in speeds} <= set(plain)
    assert max(row.low or 0 for row in speeds if row.row not in plain) > 1.3


def test_the_readme_tells_its_figures(measured):
    text = " ".join((RESULTS.parents[1] / "README.md").read_text(encoding="utf-8").split())
    compared = sum(row.value for (_, metric), row in measured.items() if metric == "answers_compared")
    assert f"in all {compared:,.0f} comparisons" in text
    for name in ("n-gram (ride)", "template+B1"):
        row = measured[name, "decode_speedup"]
        assert f"{row.value:.2f}x ({row.low:.2f} to {row.high:.2f})" in text
