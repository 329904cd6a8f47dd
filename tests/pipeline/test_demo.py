"""The demo on a very small world: all files appear, a second run reuses, a lossy answer fails the run."""

import dataclasses
import json
import shutil

import pytest

from xmsd_jax import config as configs
from xmsd_jax.config import ConfigError, UserError
from xmsd_jax.data.clip_folder import ClipFolder
from xmsd_jax.data.events import EventFrames
from xmsd_jax.data.world import WorldConfig, world_clips
from xmsd_jax.decoding.ladder import Rung
from xmsd_jax.decoding.ports import Prompt
from xmsd_jax.decoding.trace import Trace
from xmsd_jax.pipeline import benchmark, demo
from xmsd_jax.pipeline.benchmark import BenchmarkConfig, ClipSet, LiveSettings, prompts_of
from xmsd_jax.pipeline.demo import DemoConfig
from xmsd_jax.pipeline.figures import Measured, check
from xmsd_jax.pipeline.gallery import write_pages
from xmsd_jax.report.gallery import read_gallery
from xmsd_jax.runs import Row, RunFailed, read_results

PARTS = ("vision", "prefill", "first", "decode")
SMALL = {
    "clips": {"world": {"sequences": {"train": 1, "validation": 0, "test": 2}, "clips_per_sequence": 1}},
    "pair": {"threads": 1},
    "states": ["train"],
    "shard_rows": 10,
    "max_new_tokens": 24,
    "live": {
        "clips": [{"name": "held-out street scenes", "split": "test", "per_clip": 2, "answers": 3}],
        "rows": [
            {"drafter": "prompt-lookup"},
            {"drafter": "template", "prefill_mode": "ride"},
            {"drafter": "n-gram", "prefill_mode": "wait"},
        ],
        "repeats": 1,
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


def test_the_demo_leaves_page_results_traces_and_gallery(ran):
    run_dir, page = ran
    assert page == run_dir / "report.html"
    assert "world_test_0000_000" in page.read_text()
    assert {p.name for p in run_dir.glob("report.*")} == {"report.html", "report.md", "report.csv"}
    assert len(json.loads((run_dir / "gallery.json").read_text())["cards"]) == 3
    assert len(list((run_dir / "traces").glob("*.json"))) == 5


def test_every_speed_up_names_the_fastest_plain_row_of_the_run(ran):
    rows, origin = read_results(ran[0])
    ups = [r for r in rows if r.metric == "speedup"]
    assert {r.row for r in ups} == {
        "target eager", "target generate()", "prompt-lookup", "template (ride)", "n-gram (wait)",
    }  # fmt: skip
    assert {r.baseline for r in ups} <= {"target eager", "target generate()"}
    assert len({r.baseline for r in ups}) == 1
    plain = {r.row: r.value for r in ups if r.row.startswith("target")}
    assert max(plain.values()) == plain[ups[0].baseline] == 1.0
    assert origin["config"]["live"]["gamma"] == 8


def test_every_answer_of_every_row_was_certified_and_walked(ran):
    rows, _ = read_results(ran[0])
    drafting = {"prompt-lookup", "template (ride)", "n-gram (wait)"}
    assert {(r.row, r.value) for r in rows if r.metric == "answers_compared"} == {(row, 3) for row in drafting}
    assert {r.value for r in rows if r.metric in ("divergences", "ties", "walk_differs")} == {0}
    assert {(r.row, r.n) for r in rows if r.metric == "walk_differs"} == {(row, 3) for row in drafting}


def test_a_second_run_does_no_work_and_fresh_does_it_again(ran, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "_measure", lambda *a: pytest.fail("measured again"))
    demo.run(configs.load(DemoConfig, SMALL), ran[0])
    assert capsys.readouterr().out.count("reused from") == 3
    rows, _ = read_results(ran[0])
    assert [r.settings["reused"] for r in rows if r.metric == "stage_seconds"] == [True] * 3
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        demo.run(configs.load(DemoConfig, SMALL), ran[0], fresh=True)


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
    store = ran[0] / "store" / "train"
    asked = [dataclasses.replace(c, split="train", answers=None) for c in small.live.clips]
    config = BenchmarkConfig(
        clips=ran[0] / "clips", store=store, pair=small.pair, live=dataclasses.replace(small.live, clips=tuple(asked))
    )
    with pytest.raises(UserError, match="training split"):
        benchmark.run(config, tmp_path / "leak")
    other = shutil.copytree(ran[0] / "store", tmp_path / "store") / "train"
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["revisions"]["target"] = "another"
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="another target's"):
        benchmark.run(dataclasses.replace(config, live=small.live, store=other), tmp_path / "other")


def test_the_split_to_fit_on_must_be_among_the_stored_ones():
    with pytest.raises(ConfigError, match="training: foo"):
        configs.load(DemoConfig, {**SMALL, "training": "foo"})


@pytest.mark.parametrize("frames", [EventFrames(use="first"), EventFrames(n=1), EventFrames(split="time", n=3)])
def test_the_gallery_shows_whatever_frames_the_drafter_sees(tmp_path, frames):
    clip = next(iter(world_clips(WorldConfig(sequences={"a": 1}, clips_per_sequence=1), "a")))
    prompt = Prompt(clip=clip, question="What?", question_index=0)
    trace = Trace(ids=(5, 2), origins=("target", "target"), stop="eos", seconds=dict.fromkeys(PARTS, 1.0))
    measured = Measured(clips="c", prompts=(prompt,), expected=(trace,), traces={"plain": [[trace]]})
    write_pages(
        tmp_path, [measured], [Rung(name="plain", answer=lambda p: trace)], tokenizer=Letters(), event_frames=frames
    )
    (card,) = read_gallery(tmp_path)
    assert (card.tokens, card.reference, card.equal) == (("f", ""), "f", True)
    assert (tmp_path / "gallery" / card.event_png).stat().st_size > 100


def test_settings_that_make_no_sense_are_refused():
    live = configs.load(DemoConfig, SMALL).live
    with pytest.raises(ConfigError, match="rows"):
        dataclasses.replace(live, rows=(*live.rows, live.rows[0]))
    with pytest.raises(ConfigError, match="repeats"):
        dataclasses.replace(live, repeats=0)
    with pytest.raises(ConfigError, match="clips"):
        LiveSettings(clips=(), rows=live.rows)
