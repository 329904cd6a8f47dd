"""Two lanes at once: the drafter's model works beside the target's prefill, and nothing else changes."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from tests.decoding.toy import ToyVerifier, toy_prompt
from xmsd_jax.decoding.live import LiveConfig, decode
from xmsd_jax.decoding.plain import decode_plain
from xmsd_jax.decoding.ports import Context, Draft, Prompt, Span

COUNT, EARLY = 24, 6
PATIENCE = 10  # seconds that one lane waits for the other


class Meeting:
    """Lane and prefill must both be under way at once: each waits until the other has begun."""

    def __init__(self) -> None:
        self.lane, self.target = threading.Event(), threading.Event()


class Lane:
    def __init__(self, meeting: Meeting | None) -> None:
        self.meeting, self.prompts, self.thread = meeting, [], None
        self.failure: Exception | None = None

    def begin(self, prompt: Prompt) -> None:
        self.prompts.append(prompt)
        self.thread = threading.current_thread()
        if self.meeting is not None:
            self.meeting.lane.set()
            assert self.meeting.target.wait(PATIENCE), "the target waits for the drafter"
        if self.failure is not None:
            raise self.failure

    def take_spans(self) -> list[Span]:
        return []


class OwnAnswer:
    """Drafts the target's own answer with one token wrong; reads a lane."""

    name = "own answer"

    def __init__(self, answer: tuple[int, ...], lane: Lane) -> None:
        self.answer, self.lane = answer, lane

    def propose(self, context: Context, gamma: int) -> Draft:
        assert self.lane.prompts[-1] is context.prompt
        start = len(context.ids)
        ids = np.array(self.answer[start : start + gamma], np.int32)
        if len(ids) > 3:
            ids[3] = (ids[3] + 1) % 12
        return Draft(ids=ids[: np.argmax(ids >= 12)] if (ids >= 12).any() else ids)


class MeetingVerifier(ToyVerifier):
    """Its prefill begins before the draft is there; a late draft is asked for in the middle of it."""

    def __init__(self, meeting: Meeting | None = None) -> None:
        super().__init__()
        self.meeting, self.late = meeting, 0

    def prefill(self, prompt, draft_ids=(), *, logits=False):
        if self.meeting is not None:
            self.meeting.target.set()
            assert self.meeting.lane.wait(PATIENCE), "the drafter waits for the target"
        if callable(draft_ids):
            self.late += 1
            draft_ids = draft_ids()
        return super().prefill(prompt, draft_ids, logits=logits)


def config(mode: str, lanes: str) -> LiveConfig:
    early = 0 if mode == "none" else EARLY
    return LiveConfig(gamma=5, max_new_tokens=COUNT, prefill_draft_len=early, prefill_mode=mode, lanes=lanes)


@pytest.mark.parametrize("mode", ["none", "ride", "wait"])
@pytest.mark.parametrize("question", range(4))
def test_lanes_side_by_side_give_what_one_after_the_other_gives(mode, question):
    prompt = toy_prompt(question)
    alone = decode_plain(ToyVerifier(), prompt, COUNT).ids
    serial = decode(MeetingVerifier(), OwnAnswer(alone, Lane(None)), prompt, config(mode, "serial"))
    meeting = Meeting()
    lane, verifier = Lane(meeting), MeetingVerifier(meeting)
    beside = decode(verifier, OwnAnswer(alone, lane), prompt, config(mode, "parallel"))
    empty = {"seconds": {}, "spans": ()}
    assert replace(beside, **empty) == replace(serial, **empty)
    assert beside.ids == alone
    assert lane.thread is not threading.current_thread()
    assert verifier.late == (mode == "ride")


def test_a_drafter_without_a_model_stays_in_the_loop():
    """A text drafter takes microseconds: a thread would cost more."""
    prompt = toy_prompt()
    alone = decode_plain(ToyVerifier(), prompt, COUNT).ids
    drafter, verifier = OwnAnswer(alone, Lane(None)), MeetingVerifier()
    drafter.lane.begin(prompt)
    drafter.lane, kept = None, drafter.lane
    drafter.propose = lambda context, gamma: Draft(ids=np.array(alone[len(context.ids) :][:gamma], np.int32) % 12)
    assert decode(verifier, drafter, prompt, config("ride", "parallel")).ids == alone
    assert (verifier.late, len(kept.prompts)) == (0, 1)


@pytest.mark.parametrize("mode", ["none", "ride", "wait"])
def test_what_fails_in_the_drafters_lane_is_raised(mode):
    lane = Lane(None)
    lane.failure = RuntimeError("out of memory beside the target")
    with pytest.raises(RuntimeError, match="out of memory beside"):
        decode(MeetingVerifier(), OwnAnswer((5,), lane), toy_prompt(), config(mode, "parallel"))
    assert threading.active_count() == 1 or all(not t.name.startswith("drafter") for t in threading.enumerate())
