"""Recorded answers as prompts: one clip object each, fitted and replayed parts apart, the walk's figures live."""

import json

import numpy as np
import pytest

from tests.decoding.toy import ToyVerifier, toy_clip
from xmsd_jax.config import ConfigError
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.decoding.live import LiveConfig, decode
from xmsd_jax.decoding.ngram import NGram
from xmsd_jax.decoding.replayed import Replayed
from xmsd_jax.pipeline.answers import AnswersConfig, run
from xmsd_jax.pipeline.replay import replay_of

HALVES = {"fit_part": "first half", "test_part": "second half"}


@pytest.fixture
def record(tmp_path):
    """60 answers out of few phrases, 12 tokens, cut off."""
    rng = np.random.default_rng(0)
    phrases = rng.integers(3, 12, (6, 4))
    answers = [phrases[rng.integers(0, 6, 3)].ravel().tolist() for _ in range(60)]
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"question": QUESTIONS[2], "video_llava_ids": answers}))
    return AnswersConfig(fit=path, test=path, vocabulary=12, gammas=(3,), prefill_draft_len=4, block=10, **HALVES)


def test_each_answer_has_a_prompt_with_a_clip_of_its_own_in_blocks_of_neighbours(record):
    replay, recorded = replay_of(record), json.loads(record.test.read_text())["video_llava_ids"]
    clips = [prompt.clip for prompt in replay.prompts]
    assert len({id(clip) for clip in clips}) == len({clip.name for clip in clips}) == 30
    assert [replay.answers[clip.name].tolist() for clip in clips] == recorded[30:]
    assert {(prompt.question, prompt.question_index) for prompt in replay.prompts} == {(QUESTIONS[2], 2)}
    blocks = [clip.sequence for clip in clips]
    assert [blocks.count(block) for block in dict.fromkeys(blocks)] == [10, 10, 10]


def test_what_is_fitted_on_is_the_other_part_alone(record):
    recorded = json.loads(record.test.read_text())["video_llava_ids"]
    assert [ids.tolist() for ids in replay_of(record).fitted[2]] == recorded[:30]
    with pytest.raises(ConfigError, match="must not share a record"):
        replay_of(AnswersConfig(fit=record.fit, test=record.test))


def test_a_clip_that_stands_in_is_seen_in_every_prompt_under_another_name(record):
    clip = toy_clip("stand-in")
    shown = [prompt.clip for prompt in replay_of(record, clip).prompts]
    assert all(one.video is clip.video and one.events is clip.events for one in shown)
    assert clip.name not in {one.name for one in shown}


def test_tau_and_free_tokens_of_a_replay_are_those_of_the_offline_walk(record, tmp_path):
    replay = replay_of(record)
    drafter = NGram.fit(replay.fitted, vocabulary=12, order=record.order)
    target = Replayed(ToyVerifier(vocabulary=12, padding=0), replay.answers)

    def replayed(**phase_1):
        config = LiveConfig(gamma=3, max_new_tokens=12, **phase_1)
        return [decode(target, drafter, prompt, config) for prompt in replay.prompts]

    offline = {row.metric: row.value for row in run(record, tmp_path / "run") if row.row == "n-gram"}
    plain, riding = replayed(), replayed(prefill_mode="ride", prefill_draft_len=4)
    tau = sum(trace.emitted for trace in plain) / sum(len(trace.iterations) for trace in plain)
    assert tau == pytest.approx(offline["tau"])
    assert tau > 1.2
    assert np.mean([trace.n_free for trace in riding]) == pytest.approx(offline["n_free"])
    assert [trace.ids for trace in riding] == [tuple(ids.tolist()) for ids in replay.answers.values()]
