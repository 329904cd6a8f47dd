"""The small pair, live: what is decoded with drafts is what the target says alone, on 100 held-out questions."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from torch_bridge.answers import Batch
from torch_bridge.generate import generate
from torch_bridge.verifier import TorchVerifier
from torch_bridge.video_llava import load_target
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.recording import davis_clips
from xmsd_jax.data.world import WorldConfig, world_clips
from xmsd_jax.decoding.ladder import offline, references, speculative
from xmsd_jax.decoding.live import LiveConfig, decode
from xmsd_jax.decoding.ngram import NGram
from xmsd_jax.decoding.ports import Prompt
from xmsd_jax.decoding.text_drafters import RandomDrafter, Template
from xmsd_jax.pipeline.pair import PairConfig, model_folder

COUNT = 64
WORLD = WorldConfig(sequences={"train": 8, "test": 10}, clips_per_sequence=1, seed=11)
MODES = (("none", 0), ("ride", 12), ("wait", 12))


class SharedSight(TorchVerifier):
    """Looks at each clip once: these tests compare ids, not times."""

    def prefill(self, prompt, draft_ids=(), *, logits=False, visual=None):
        if getattr(self, "seen", None) is not prompt.clip:
            self.seen, self.visual = prompt.clip, self.encode(prompt)
        return super().prefill(prompt, draft_ids, logits=logits, visual=self.visual)


@pytest.fixture(scope="module")
def verifier():
    torch.set_num_threads(1)
    return SharedSight(load_target(model_folder(PairConfig(), "target")))


@pytest.fixture(scope="module")
def training(verifier) -> dict[int, list[list[int]]]:
    answers: dict[int, list[list[int]]] = {q: [] for q in range(len(QUESTIONS))}
    for clip in world_clips(WORLD, "train"):
        told = Batch(verifier.vlm, [clip], QUESTIONS).answer(COUNT)
        for question, (ids, length) in enumerate(zip(told.ids.tolist(), told.lengths.tolist(), strict=True)):
            answers[question].append(ids[:length])
    return answers


@pytest.fixture(scope="module")
def heldout(verifier):
    prompts = [
        Prompt(clip=clip, question=question, question_index=index)
        for clip in world_clips(WORLD, "test")
        for index, question in enumerate(QUESTIONS)
    ]
    return list(zip(prompts, references(verifier, prompts, COUNT), strict=True))


def drafters(training, vocabulary) -> Iterator:
    yield Template.fit(training, vocabulary=vocabulary)
    yield NGram.fit(training, vocabulary=vocabulary)
    yield RandomDrafter(seed=5, vocabulary=vocabulary)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1, 2], ids=["template", "n-gram", "random"])
def test_live_ids_are_the_targets_own_and_the_walk_is_the_offline_one(verifier, training, heldout, which):
    drafter = list(drafters(training, verifier.vocabulary))[which]
    assert len(heldout) == 100
    for number, (prompt, reference) in enumerate(heldout):
        mode, early = MODES[number % 3]
        config = LiveConfig(gamma=5, max_new_tokens=COUNT, prefill_mode=mode, prefill_draft_len=early)
        rung = speculative(drafter.name, verifier, drafter, config)
        trace = rung.answer(prompt)
        assert trace.ids == reference.ids, f"{prompt.clip.name}, {prompt.question}, {mode}"
        walked = offline(rung, verifier, prompt, reference)
        assert walked is not None
        assert (walked.iterations, sum(walked.accepted)) == (
            len(trace.iterations),
            sum(i.accepted for i in trace.iterations),
        )


def test_the_reference_is_what_the_library_generates(verifier):
    clip = davis_clips()[0]
    prompts = [Prompt(clip=clip, question=QUESTIONS[q], question_index=q) for q in (0, 4)]
    for prompt, reference in zip(prompts, references(verifier, prompts, COUNT), strict=True):
        ids, seconds = generate(verifier.vlm, prompt, COUNT)
        assert ids == reference.ids
        assert set(seconds) == {"vision", "prefill", "decode"}
        assert min(seconds.values()) > 0


def test_sampled_answers_at_any_temperature_hold_real_ids_and_stop(verifier, training):
    drafter = NGram.fit(training, vocabulary=verifier.vocabulary)
    prompt = Prompt(clip=davis_clips()[1], question=QUESTIONS[2], question_index=2)
    config = LiveConfig(gamma=5, max_new_tokens=20, temperature=0.8, prefill_mode="ride", prefill_draft_len=6)
    traces = [decode(verifier, drafter, prompt, config, np.random.default_rng(seed)) for seed in range(3)]
    assert all(1 <= len(t.ids) <= 20 for t in traces)
    assert decode(verifier, drafter, prompt, config, np.random.default_rng(0)).ids == traces[0].ids
