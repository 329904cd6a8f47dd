"""The demo on a very small world: all files appear, a second run reuses, a lossy answer fails the run."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from xmsd_jax import config as configs
from xmsd_jax.config import ConfigError, UserError
from xmsd_jax.data.clip_folder import ClipFolder
from xmsd_jax.data.events import EventFrames
from xmsd_jax.data.world import WorldConfig, world_clips
from xmsd_jax.decoding.draft_lengths import measured_gammas
from xmsd_jax.decoding.ladder import Rung
from xmsd_jax.decoding.ports import Prompt
from xmsd_jax.decoding.trace import Trace
from xmsd_jax.pipeline import benchmark, demo, evaluate, ladder_run, train
from xmsd_jax.pipeline.benchmark import BenchmarkConfig, ClipSet, LiveSettings, prompts_of
from xmsd_jax.pipeline.demo import DemoConfig
from xmsd_jax.pipeline.figures import check
from xmsd_jax.pipeline.gallery import write_pages
from xmsd_jax.pipeline.ladder_run import Climbed, ClipAnswers
from xmsd_jax.pipeline.predicted import read_costs
from xmsd_jax.report.gallery import read_gallery
from xmsd_jax.runs import Row, RunFailed, read_results

PARTS = ("vision", "prefill", "first", "decode")
SMALL = {
    "clips": {"world": {"sequences": {"train": 1, "validation": 0, "test": 2}, "clips_per_sequence": 1}},
    "pair": {"threads": 1},
    "shard_rows": 10,
    "max_new_tokens": 24,
    "live": {
        "clips": [{"name": "held-out street scenes", "split": "test", "per_clip": 2, "answers": 3}],
        "rows": [
            {"drafter": "prompt-lookup"},
            {"drafter": "template", "prefill_mode": "ride"},
            {"drafter": "n-gram", "prefill_mode": "wait", "gamma": 10},
            {"drafter": "n-gram", "prefill_mode": "ride", "gamma": "auto"},
        ],
        "repeats": 1,
    },
}


RECIPE = {"epochs": 1, "cosine_epochs": 1, "batch": 8, "gamma": 2, "prefill_draft_len": 6}
ADAPTERS = ("B1", "L1", "L5F (synced)")
DRAFTING = ("n-gram", "B1", "B1 (auto)", "L1", "L1+B1", "template+L5F (synced)")
STUDIED = {
    **SMALL,
    "clips": {"world": {"sequences": {"train": 1, "validation": 1, "test": 2}, "clips_per_sequence": 1}},
    "adapters": [
        {"kind": "B1", "recipe": RECIPE},
        {"kind": "L1", "recipe": RECIPE},
        {"kind": "L5F", "pairing": "synced", "recipe": RECIPE},
    ],
    "live": {
        **SMALL["live"],
        "rows": [
            {"drafter": "n-gram"},
            {"drafter": "B1"},
            {"drafter": "B1", "gamma": "auto"},
            {"prefill": "L1", "prefill_mode": "ride"},
            {"prefill": "L1", "drafter": "B1", "prefill_mode": "wait"},
            {"prefill": "template", "drafter": "L5F (synced)", "prefill_mode": "ride"},
        ],
        "gamma": 2,
        "prefill_draft_len": 6,
        "timed": 2,
    },
}


class Letters:
    """A tokenizer that knows two tokens."""

    def decode(self, ids):
        return "".join({5: "f", 2: ""}[i] for i in ids)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("demo") / "run"
    page = demo.run(configs.load(DemoConfig, SMALL), run_dir)
    return run_dir, page


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """Run folder of a demo with adapters, and the predictions that lay on disk when live decoding began."""
    run_dir, found = tmp_path_factory.mktemp("demo") / "run", []

    def climb_set(*args, **more):
        found.append(read_results(run_dir / "live" / "predicted")[0])
        return ladder_run.climb_set(*args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "climb_set", climb_set)
        demo.run(configs.load(DemoConfig, STUDIED), run_dir)
    return run_dir, found


def test_the_demo_leaves_page_results_traces_and_gallery(ran):
    run_dir, page = ran
    assert page == run_dir / "report.html"
    assert "world_test_0000_000" in page.read_text()
    assert {p.name for p in run_dir.glob("report.*")} == {"report.html", "report.md", "report.csv"}
    assert len(json.loads((run_dir / "gallery.json").read_text())["cards"]) == 3
    assert len(list((run_dir / "traces").glob("*.json"))) == 7


def test_every_speed_up_names_the_fastest_plain_row_of_the_run(ran):
    rows, origin = read_results(ran[0])
    ups = [r for r in rows if r.metric == "speedup"]
    assert {r.row for r in ups} == {
        "target eager", "target static", "target generate()", "prompt-lookup", "template (ride)", "n-gram (wait)",
        "n-gram (ride, auto)",
    }  # fmt: skip
    assert {r.baseline for r in ups} <= {"target eager", "target static", "target generate()"}
    assert len({r.baseline for r in ups}) == 1
    plain = {r.row: r.value for r in ups if r.row.startswith("target")}
    assert max(plain.values()) == plain[ups[0].baseline] == 1.0
    assert origin["config"]["live"]["gamma"] == 8


def test_every_answer_of_every_row_was_certified_and_walked(ran):
    rows, _ = read_results(ran[0])
    drafting = {"prompt-lookup", "template (ride)", "n-gram (wait)", "n-gram (ride, auto)"}
    assert {(r.row, r.value) for r in rows if r.metric == "answers_compared"} == {(row, 3) for row in drafting}
    assert {r.value for r in rows if r.metric in ("divergences", "ties", "walk_differs")} == {0}
    assert {(r.row, r.n) for r in rows if r.metric == "walk_differs"} == {(row, 3) for row in drafting}
    assert {r.row: r.settings["gamma"] for r in rows if r.metric == "tau"} == {
        "prompt-lookup": 8, "template (ride)": 8, "n-gram (wait)": 10, "n-gram (ride, auto)": "auto",
    }  # fmt: skip


def test_a_row_that_chooses_its_lengths_is_predicted_and_shown_as_auto(ran):
    rows, _ = read_results(ran[0])
    parts = [r for r in rows if r.row == "n-gram (ride, auto)" and r.metric == "part_ms"]
    assert {r.kind for r in parts} == {"predicted", "measured"}
    assert {r.settings["gamma"] for r in parts} == {"auto"}
    assert "n-gram (ride, auto)" not in {r.row for r in rows if r.metric == "speedup_by_gamma"}
    for name in ("report.html", "report.md"):
        assert "n-gram (ride, auto)" in (ran[0] / name).read_text()
    (costs,) = read_costs(ran[0] / "live" / "costs.json").values()
    assert measured_gammas(costs["n-gram (ride, auto)"], 8) == [1, 2, 4, 8]


def test_a_second_run_does_no_work_and_fresh_does_it_again(ran, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "_measure", lambda *a: pytest.fail("measured again"))
    demo.run(configs.load(DemoConfig, SMALL), ran[0])
    assert capsys.readouterr().out.count("reused from") == 4
    rows, _ = read_results(ran[0])
    assert [r.settings["reused"] for r in rows if r.metric == "stage_seconds"] == [True] * 4
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        demo.run(configs.load(DemoConfig, SMALL), ran[0], fresh=True)


@pytest.mark.slow
def test_every_answer_of_every_adapter_row_was_certified_and_took_its_offline_walk(studied):
    rows, _ = read_results(studied[0])
    assert {(r.row, r.value) for r in rows if r.metric == "answers_compared"} == {(row, 3) for row in DRAFTING}
    assert {r.value for r in rows if r.metric in ("divergences", "ties", "walk_differs")} == {0}
    assert {(r.row, r.n) for r in rows if r.metric == "walk_differs"} == {(row, 3) for row in DRAFTING}
    free = {r.row: r.value for r in rows if r.metric == "n_free"}
    assert set(free) == {"L1", "L1+B1", "template+L5F (synced)"}
    assert free["template+L5F (synced)"] > 0, "phase 2 took over after a free prefix"


@pytest.mark.slow
def test_predictions_lie_on_disk_before_anything_is_decoded_live(studied):
    run_dir, (before,) = studied
    assert before == read_results(run_dir / "live" / "predicted")[0]
    assert {r.kind for r in before if r.metric in ("part_ms", "speedup_by_gamma")} == {"predicted"}
    assert {r.row for r in before if r.metric == "part_ms"} == {"target static", *DRAFTING}
    assert {r.row for r in before if r.metric == "speedup_by_gamma"} == {*DRAFTING} - {"L1", "B1 (auto)"}
    assert (run_dir / "live" / "costs.json").is_file()


@pytest.mark.slow
def test_every_row_has_its_milliseconds_by_part_both_predicted_and_measured(studied):
    rows, _ = read_results(studied[0])
    parts = [r for r in rows if r.metric == "part_ms"]
    for kind, answers in (("predicted", 3), ("measured", 2)):
        assert {r.row for r in parts if r.kind == kind} == {"target static", *DRAFTING}
        assert {r.n for r in parts if r.kind == kind} == {answers}
        assert {r.settings["part"] for r in parts if (r.kind, r.row) == (kind, "template+L5F (synced)")} >= {
            "vision", "prefill", "lane", "draft", "sync", "verify", "host",
        }  # fmt: skip
    whole = {r.row: r.value for r in rows if r.metric == "vision_ms"}
    assert all(
        r.value == pytest.approx(whole[r.row]) for r in parts if (r.kind, r.settings["part"]) == ("measured", "vision")
    )


@pytest.mark.slow
def test_accepted_prefixes_are_counted_in_four_ways_and_trainings_have_their_curves(studied):
    rows, _ = read_results(studied[0])
    shares = {(r.row, r.settings["how"]): r.settings["shares"] for r in rows if r.metric == "S_k"}
    everywhere = ("rolled out, all anchors", "rolled out, visited anchors", "live, visited anchors")
    for how in ("teacher-forced, all anchors", *everywhere):
        assert len(shares["B1", how]) == 2
    assert {how for row, how in shares if row == "template+L5F (synced)"} == set(everywhere[1:])
    assert all(shares[row, everywhere[1]] == shares[row, everywhere[2]] for row in DRAFTING if row != "L1")
    assert {(r.row, r.settings["series"]) for r in rows if r.metric == "training_curve"} == {
        (name, series)
        for name in ADAPTERS
        for series in ("training loss", "validation loss", f"validation {'n_free' if name == 'L1' else 'tau'}")
    }


@pytest.mark.slow
def test_a_second_run_with_adapters_trains_judges_and_decodes_nothing(studied, monkeypatch, capsys):
    for module, name in ((train, "_train"), (evaluate, "_judge"), (benchmark, "_measure")):
        monkeypatch.setattr(module, name, lambda *a: pytest.fail("done again"))
    before = {r for r in map(repr, read_results(studied[0])[0]) if "stage_seconds" not in r}
    demo.run(configs.load(DemoConfig, STUDIED), studied[0])
    assert capsys.readouterr().out.count("reused from") == 7
    rows, _ = read_results(studied[0])
    assert {r for r in map(repr, rows) if "stage_seconds" not in r} == before
    assert [r.settings["reused"] for r in rows if r.metric == "stage_seconds"] == [True] * 7


@pytest.mark.parametrize("metric", ["divergences", "walk_differs"])
def test_one_lossy_or_unpredicted_answer_fails_the_run(metric):
    settings = {"clips": "c"}
    check([Row(row="n-gram", metric=metric, value=0, settings=settings)])
    with pytest.raises(RunFailed, match="n-gram: 1 "):
        check([Row(row="n-gram", metric=metric, value=1, settings=settings)])


def test_prompts_are_different_questions_from_clip_to_clip(ran):
    folder = ClipFolder.open(ran[0] / "clips")
    found = prompts_of(ClipSet(name="c", split="test", per_clip=2), folder)
    assert [p.question_index for p in found] == [0, 1, 2, 3]
    assert [p.clip.name for p in found] == ["world_test_0000_000"] * 2 + ["world_test_0001_000"] * 2
    with pytest.raises(UserError, match="9 answers are asked for"):
        prompts_of(ClipSet(name="c", split="test", per_clip=2, answers=9), folder)


def test_drafters_are_never_fitted_on_what_is_asked_nor_on_another_targets_answers(ran, tmp_path):
    small = configs.load(DemoConfig, SMALL)
    asked = [dataclasses.replace(c, split="train", answers=None) for c in small.live.clips]
    config = BenchmarkConfig(
        clips=ran[0] / "clips",
        store=ran[0] / "store",
        pair=small.pair,
        live=dataclasses.replace(small.live, clips=tuple(asked)),
    )
    with pytest.raises(UserError, match="training split"):
        benchmark.run(config, tmp_path / "leak")
    other = shutil.copytree(ran[0] / "store", tmp_path / "store")
    manifest = json.loads((other / "train" / "manifest.json").read_text())
    manifest["revisions"]["target"] = "another"
    (other / "train" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="another target's"):
        benchmark.run(dataclasses.replace(config, live=small.live, store=other), tmp_path / "other")


def test_the_split_to_fit_on_must_be_among_the_clips_and_not_be_asked_about(tmp_path):
    with pytest.raises(UserError, match="foo"):
        demo.run(configs.load(DemoConfig, {**SMALL, "training": "foo"}), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"live.clips: test and validation are fitted on"):
        configs.load(DemoConfig, {**SMALL, "training": "test"})


@pytest.mark.parametrize("frames", [EventFrames(use="first"), EventFrames(n=1), EventFrames(split="time", n=3)])
def test_the_gallery_shows_whatever_frames_the_drafter_sees(tmp_path, frames):
    clip = next(iter(world_clips(WorldConfig(sequences={"a": 1}, clips_per_sequence=1), "a")))
    prompt = Prompt(clip=clip, question="What?", question_index=0)
    trace = Trace(ids=(5, 2), origins=("target", "target"), stop="eos", seconds=dict.fromkeys(PARTS, 1.0))
    answers = ClipAnswers(clips="c", prompts=(prompt,), references=(trace,), expected={}, costs={})
    rungs = (Rung(name="plain", answer=lambda p: trace),)
    climbed = Climbed(answers=answers, rungs=rungs, traces={"plain": [[trace]]}, timed=np.array([True]))
    write_pages(tmp_path, [climbed], [], tokenizer=Letters(), event_frames=frames)
    (card,) = read_gallery(tmp_path)
    assert (card.tokens, card.reference, card.equal) == (("f", ""), "f", True)
    assert (tmp_path / "gallery" / card.event_png).stat().st_size > 100


def test_settings_that_make_no_sense_are_refused():
    live = configs.load(DemoConfig, SMALL).live
    with pytest.raises(ConfigError, match="rows"):
        dataclasses.replace(live, rows=(*live.rows, live.rows[0]))
    with pytest.raises(ConfigError, match="repeats"):
        dataclasses.replace(live, repeats=0)
    with pytest.raises(ConfigError, match="timed"):
        dataclasses.replace(live, timed=0)
    with pytest.raises(ConfigError, match="clips"):
        LiveSettings(clips=(), rows=live.rows)
