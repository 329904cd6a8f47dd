"""Recorded answers: fit and test never share a record, the figures are those of the offline walk."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xmsd_jax import config as configs
from xmsd_jax.config import ConfigError, UserError
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.decoding.ngram import NGram
from xmsd_jax.decoding.text_anchors import after, text_anchors, text_free
from xmsd_jax.decoding.text_drafters import Template
from xmsd_jax.decoding.walk import free_prefix, walk
from xmsd_jax.pipeline.answers import ANSWERS, AnswersConfig, read_answers, run, text_prompt
from xmsd_jax.runs import read_results

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "evaluate" / "answers.yaml"
RECORD = {
    "question": QUESTIONS[0],
    "video_llava_ids": [[5, 6, 7, 2], [5, 6, 7, 2], [5, 6, 8, 9, 2], [5, 6, 7, 9, 2], [5, 6, 7, 2]],
    "eventgpt_ids": [[4, 2]] * 5,
}
HALVES = {"fit_part": "first half", "test_part": "second half"}


def record(folder: Path, name: str = "answers.json", **changes) -> Path:
    content = {k: v for k, v in {**RECORD, **changes}.items() if v is not None}
    (folder / name).write_text(json.dumps(content))
    return folder / name


def small(path: Path, **changes) -> AnswersConfig:
    given = {"fit": str(path), "test": str(path), **HALVES, "gammas": [1, 2], "prefill_draft_len": 3, "vocabulary": 10}
    return configs.load(AnswersConfig, {**given, **changes})


def told(rows, row: str, metric: str, **settings) -> list[float | None]:
    found = [r for r in rows if (r.row, r.metric) == (row, metric) and settings.items() <= r.settings.items()]
    return [r.value for r in found]


def test_recorded_answers_are_read_as_they_were_written_and_half_of_an_odd_number_is_the_shorter(tmp_path):
    answers = read_answers(record(tmp_path))
    assert [ids.tolist() for ids in answers.target_ids] == RECORD["video_llava_ids"]
    assert answers.drafter_ids is not None
    assert (answers.question, len(answers.drafter_ids)) == (QUESTIONS[0], 5)
    parts = [len(answers.part(part)) for part in ("all", "first half", "second half")]
    assert parts == [5, 2, 3]
    assert read_answers(record(tmp_path, "b.json", eventgpt_ids=None)).drafter_ids is None


def test_the_figures_by_hand(tmp_path, capsys):
    # both drafters know [5, 6, 7, 2] alone; tested on [5, 6, 8, 9, 2], [5, 6, 7, 9, 2] and [5, 6, 7, 2]
    rows = run(small(record(tmp_path)), tmp_path / "run")
    # template, gamma 2: anchors 0 and 2 and 3; 0 and 3; 0: emits 4 + 4 + 3 in 3 + 2 + 1
    assert told(rows, "template", "tau", gamma=2) == [pytest.approx(11 / 6)]
    assert told(rows, "template", "n_free", prefill_draft_len=3) == [pytest.approx((2 + 3 + 3) / 3)]
    assert told(rows, "target", "tokens") == [pytest.approx(14 / 3)]
    shown = capsys.readouterr().out
    assert "fitted on 2 (first half), tested on 3 (second half)" in shown
    assert "gamma 2                   1.83" in shown
    stored, provenance = read_results(tmp_path / "run")
    assert stored == rows
    assert provenance["config"]["fit_part"] == "first half"
    assert {(r.kind, r.settings["answers"]) for r in stored} == {("measured", ANSWERS)}


def test_tau_and_free_tokens_are_those_of_the_offline_walk(tmp_path):
    rng = np.random.default_rng(0)
    answers = [[*rng.integers(3, 6, rng.integers(1, 12)).tolist(), 2] for _ in range(40)]
    rows = run(small(record(tmp_path, video_llava_ids=answers, eventgpt_ids=None)), tmp_path / "run")
    prompt, tested = text_prompt(QUESTIONS[0]), answers[20:]
    for drafter in (
        Template.fit({0: answers[:20]}, vocabulary=10),
        NGram.fit({0: answers[:20]}, vocabulary=10, order=8),
    ):
        for gamma in (1, 2):
            walks = [walk(ids, drafter, prompt, gamma) for ids in tested]
            tau = sum(w.emitted for w in walks) / sum(w.iterations for w in walks)
            assert told(rows, drafter.name, "tau", gamma=gamma) == [pytest.approx(tau)]
        free = np.mean([free_prefix(ids, drafter, prompt, 3) for ids in tested])
        assert told(rows, drafter.name, "n_free") == [pytest.approx(free)]


def test_intervals_are_over_contiguous_blocks(tmp_path):
    path = record(tmp_path, video_llava_ids=RECORD["video_llava_ids"] * 4, eventgpt_ids=None)
    rows = run(small(path, block=5), tmp_path / "blocks")
    assert all(row.low is not None and row.n == 10 for row in rows)
    assert all(row.low is None for row in run(small(path, block=10), tmp_path / "one"))


def test_a_question_outside_the_study_is_a_free_one():
    assert text_prompt(QUESTIONS[3]).question_index == 3
    assert text_prompt("And now?").question_index == -1


def test_a_draft_of_fewer_tokens_counts_as_missed_from_there_on():
    answer = np.array([5, 6, 7, 7, 2], np.int32)
    drafter, prompts = Template({0: [5, 6, 7]}), [text_prompt(QUESTIONS[0])]
    free = text_free(drafter, [answer], prompts, draft_len=12)
    anchors = after(text_anchors(drafter, [answer], prompts, gamma=4), free)
    assert anchors.right.tolist() == [[2, 1, 0, 0, -1]]
    assert anchors.free.tolist() == [3]


@pytest.mark.parametrize(
    "parts",
    [
        {"fit_part": "all", "test_part": "all"},
        {"fit_part": "all"},
        {"test_part": "all"},
        {"fit_part": "second half"},
        {"test_part": "first half"},
    ],
)
def test_fit_and_test_that_share_a_record_are_refused_even_under_another_name(tmp_path, parts):
    copy = record(tmp_path, "copy.json", eventgpt_ids=None)
    for test in (record(tmp_path), copy):
        with pytest.raises(ConfigError, match="must not share a record") as caught:
            run(small(record(tmp_path), test=str(test), **parts), tmp_path / "run")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_two_files_may_be_used_whole(tmp_path):
    other = record(tmp_path, "other.json", video_llava_ids=[[5, 6, 2]], eventgpt_ids=None)
    rows = run(small(record(tmp_path), test=str(other), fit_part="all", test_part="all"), tmp_path / "run")
    assert {row.settings["fit_answers"] for row in rows} == {5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": None}, "need the keys question and video_llava_ids, got video_llava_ids, eventgpt_ids"),
        ({"video_llava_ids": None}, "need the keys"),
        ({"question": ""}, "question must be the text"),
        ({"video_llava_ids": []}, "at least one answer"),
        ({"video_llava_ids": {"a": [1]}}, "at least one answer"),
        ({"video_llava_ids": [[1], []]}, r"video_llava_ids\[1\] must be a list of token ids"),
        ({"video_llava_ids": [[1], [1.5]]}, r"video_llava_ids\[1\] must be"),
        ({"video_llava_ids": [["1"]]}, "whole numbers"),
        ({"video_llava_ids": [[True]]}, "whole numbers"),
        ({"video_llava_ids": [[-1]]}, "whole numbers"),
        ({"video_llava_ids": [[1 << 40]]}, "whole numbers"),
        ({"eventgpt_ids": [[1]]}, "got 5 and 1"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line_that_names_it(tmp_path, changes, message):
    path = record(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as caught:
        read_answers(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", '{"question": 1e999'])
def test_what_is_no_record_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json: (cannot be read as JSON|recorded answers need)"):
        read_answers(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"b\.json: no such file"):
        read_answers(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fit": None}, "give --fit FILE --test FILE"),
        ({"test": None}, "give --fit FILE --test FILE"),
        ({"gammas": []}, "gammas: must be"),
        ({"gammas": [2, 2]}, "gammas: must be"),
        ({"gammas": [0]}, "gammas: must be"),
        ({"order": 0}, "order: must be at least 1"),
        ({"block": 0}, "block: must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        run(small(record(tmp_path), **changes), tmp_path / "run")


def test_half_of_one_answer_and_another_question_are_refused(tmp_path):
    one = record(tmp_path, video_llava_ids=[[5, 2]], eventgpt_ids=None)
    with pytest.raises(ConfigError, match="first half of one answer is empty"):
        run(small(one), tmp_path / "run")
    other = record(tmp_path, "other.json", question=QUESTIONS[1])
    with pytest.raises(ConfigError, match="must answer one question"):
        run(small(record(tmp_path), test=str(other)), tmp_path / "run")


def test_the_stage_runs_without_jax_and_torch():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('jax', 'jaxlib', 'flax', 'torch', 'transformers'))); "
        "import xmsd_jax.pipeline.answers, xmsd_jax.decoding.cost"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_committed_result_is_what_the_packaged_config_gives_on_the_recorded_answers(tmp_path, needs_shared):
    path = needs_shared / "data" / "dsec_test_answers_first550.json"
    config = configs.load(AnswersConfig, CONFIG, {"fit": str(path), "test": str(path)})
    assert configs.load(AnswersConfig, configs.dump(config)) == config
    rows = run(config, tmp_path)
    committed, provenance = read_results(ROOT / "results" / "recorded_answers")
    assert rows == committed
    assert provenance["command"][:3] == ["xmsd", "evaluate", "evaluate/answers.yaml"]
    header = CONFIG.read_text()
    for row, gamma in (("n-gram", 5), ("n-gram", 8), ("template", 5), ("template", 8)):
        assert f" {told(rows, row, 'tau', gamma=gamma)[0]:.2f}" in header
    assert [f"{told(rows, row, 'n_free')[0]:.2f}" for row in ("template", "n-gram")] == ["8.95", "8.95"]
