"""A static cache says what an eager session says, row by row, whatever was read, cropped and left behind."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.torch_bridge.fake_pair import PADDED, WIDTH, FakeVLM, fake_clip, fake_drafter, fake_target
from torch_bridge.drafter import TorchLane
from torch_bridge.fused_projections import fuse
from torch_bridge.static_look import GraphedLook
from torch_bridge.static_memory import StaticMemory, chunk_layer, few_layer
from torch_bridge.static_session import StaticSession
from torch_bridge.verifier import SharedVerifier, TorchVerifier
from torch_bridge.vlm import Session
from xmsd_jax.config import ConfigError
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.decoding.plain import decode_plain
from xmsd_jax.decoding.ports import Prompt

pytestmark = pytest.mark.usefixtures("one_thread")

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
ROOM = 40
PROMPTS = [Prompt(clip=fake_clip(n), question=QUESTIONS[n], question_index=n) for n in range(3)]
CLOSE = {"rtol": 0, "atol": 2e-5}
MODES = pytest.mark.parametrize("exact", [False, True], ids=["padded as needed", "exact"])


def target_on(device: str, dtype: torch.dtype = torch.float32, held: int = 4) -> FakeVLM:
    vlm = fake_target(dtype=dtype, held=held)
    vlm.model.to(device)
    return vlm


def both(vlm: FakeVLM, **options) -> tuple[Session, StaticSession]:
    return Session(vlm), StaticSession(vlm, room=ROOM, compiled=False, **options)


@MODES
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("held", [4, 2], ids=["every head its own keys", "grouped queries"])
def test_states_are_those_of_an_eager_session_through_reads_and_crops(device, held, exact):
    vlm = target_on(device, held=held)
    draws = np.random.default_rng(0)
    eager, static = both(vlm, exact=exact)
    for prompt in PROMPTS:
        visual = eager.encode(prompt.clip)
        riding = draws.integers(3, PADDED, draws.integers(0, 6))
        one, other = (session.prefill(prompt.question, visual, riding) for session in (eager, static))
        torch.testing.assert_close(other, one, **CLOSE)
        for count in (1, 2, 5, 9, 3, 12, 16, 1):
            forgotten = int(draws.integers(0, min(count, eager.read) + 1))
            ids = draws.integers(3, PADDED, min(count, ROOM - static.read + forgotten))
            for session in (eager, static):
                session.crop(forgotten)
            if not len(ids):
                continue
            one, other = (session.verify(ids) for session in (eager, static))
            torch.testing.assert_close(other, one, **CLOSE)
            np.testing.assert_array_equal(static.emitted(other)[0], eager.emitted(one)[0])
            assert (static.length, static.read) == (eager.length, eager.read)


@MODES
def test_a_draft_that_comes_late_rides_as_one_that_was_known(exact):
    """It is asked for once, when the visual tokens have been read (with `exact`: the whole prompt)."""
    eager, static = both(fake_target(), exact=exact)
    visual, draft, asked = eager.encode(PROMPTS[0].clip), [7, 8, 9], []

    def late():
        asked.append(static.length)
        return draft

    expected = eager.prefill(PROMPTS[0].question, visual, draft)
    torch.testing.assert_close(static.prefill(PROMPTS[0].question, visual, late), expected, **CLOSE)
    torch.testing.assert_close(eager.prefill(PROMPTS[0].question, visual, lambda: draft), expected, **CLOSE)
    assert len(asked) == 1
    torch.testing.assert_close(static.verify([5, 6]), eager.verify([5, 6]), **CLOSE)


@pytest.fixture
def looks(monkeypatch):
    """On a GPU graphs are captured; elsewhere their work is done again."""
    if not torch.cuda.is_available():
        graph = lambda device, work, side: SimpleNamespace(replay=work)  # noqa: E731
        monkeypatch.setattr("torch_bridge.static_look.captured", graph)
    return DEVICES[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_clip_is_seen_as_the_model_sees_it_however_often(looks, dtype):
    """Each call has tokens of its own, the next one's do not replace them."""
    vlm = target_on(looks, dtype)
    look, clips = GraphedLook(vlm), [prompt.clip for prompt in (*PROMPTS, PROMPTS[0])]
    seen = [look(vlm.pixels(clip)) for clip in clips]
    for tokens, clip in zip(seen, clips, strict=True):
        assert torch.equal(tokens, vlm.look(vlm.pixels(clip).to(dtype)))


def test_a_capture_that_failed_is_made_again(looks, monkeypatch):
    vlm = target_on(looks)
    look, pixels = GraphedLook(vlm), vlm.pixels(PROMPTS[0].clip)
    look(pixels)
    see = vlm.look
    monkeypatch.setattr(vlm, "look", lambda frames: see(frames.reshape(pixels.shape)))
    with monkeypatch.context() as patch:
        patch.setattr("torch_bridge.static_look.captured", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("full")))
        with pytest.raises(RuntimeError, match="full"):
            look(pixels[..., None])
    for shape in (pixels, 2 * pixels):
        assert torch.equal(look(shape), vlm.look(shape))


@MODES
def test_visual_tokens_that_are_kept_are_read_once_for_all_questions_about_them(exact, monkeypatch):
    eager, static = both(fake_target(), exact=exact, keep_visual=True)
    visuals, read = [eager.encode(PROMPTS[n].clip) for n in range(2)], []
    chunk = StaticMemory.read_chunk
    monkeypatch.setattr(
        StaticMemory, "read_chunk", lambda self, x, start: read.append((start, len(x))) or chunk(self, x, start)
    )
    for which, question in ((0, 0), (0, 1), (1, 1), (0, 2)):
        expected = eager.prefill(QUESTIONS[question], visuals[which], [7, 8])
        torch.testing.assert_close(static.prefill(QUESTIONS[question], visuals[which], [7, 8]), expected, **CLOSE)
        torch.testing.assert_close(static.verify([5, 6]), eager.verify([5, 6]), **CLOSE)
    from_start = [at for at, (start, _) in enumerate(read) if start == 0]
    assert from_start == [0, 3, 5], "the second question about the first clip read no visual token"


def test_a_prompt_that_failed_leaves_no_visual_tokens_to_rely_on(monkeypatch):
    eager, static = both(fake_target(), keep_visual=True)
    visual, other = (eager.encode(PROMPTS[n].clip) for n in range(2))
    static.prefill(QUESTIONS[0], visual)
    with monkeypatch.context() as patch:
        patch.setattr(StaticMemory, "read_chunk", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(RuntimeError, match="out of memory"):
            static.prefill(QUESTIONS[0], other)
    for keys, values in static._held().layers:
        keys.fill_(float("nan"))
        values.fill_(float("nan"))
    torch.testing.assert_close(static.prefill(QUESTIONS[1], visual), eager.prefill(QUESTIONS[1], visual), **CLOSE)


def test_states_are_rows_of_one_buffer_that_stays():
    """h[t] at row t: what is kept is never copied, and what a rejected draft left is written over."""
    _, static = both(fake_target())
    first = static.prefill(PROMPTS[0].question, static.encode(PROMPTS[0].clip), [4, 5])
    buffer = static.states
    kept = first[:2].clone()
    static.crop(1)
    second = static.verify([9, 10, 11])
    assert first.data_ptr() == buffer.data_ptr()
    assert second.data_ptr() == buffer[2].data_ptr()
    torch.testing.assert_close(buffer[:2], kept, rtol=0, atol=0)
    static.prefill(PROMPTS[1].question, static.encode(PROMPTS[1].clip))
    assert static.states is buffer


def test_what_lies_beyond_the_text_is_never_read():
    _, static = both(fake_target(), exact=True)
    visual = static.encode(PROMPTS[0].clip)
    expected = static.prefill(PROMPTS[0].question, visual, [4, 5]).clone()
    for keys, values in static._held().layers:
        keys[:, :, static.length :] = float("nan")
        values[:, :, static.length :] = float("inf")
    static.crop(2)
    torch.testing.assert_close(static.verify([4, 5]), expected[1:], **CLOSE)


def test_a_longer_prompt_takes_new_memory_and_a_shorter_one_does_not():
    vlm = fake_target()
    eager, static = both(vlm)
    for tokens, grows in ((8, True), (90, True), (8, False)):
        visual = torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(tokens))
        before = static._memory
        outs = [session.prefill(PROMPTS[0].question, visual, [4]) for session in (eager, static)]
        torch.testing.assert_close(outs[1], outs[0], **CLOSE)
        torch.testing.assert_close(static.verify([5, 6]), eager.verify([5, 6]), **CLOSE)
        assert (static._memory is not before) == grows


def test_room_is_said_before_anything_is_written():
    _, static = both(fake_target())
    with pytest.raises(ValueError, match="call prefill first"):
        static.verify([4])
    visual = static.encode(PROMPTS[0].clip)
    static.prefill(PROMPTS[0].question, visual, [5] * (ROOM - 2))
    with pytest.raises(ValueError, match="room for 40 tokens after the prompt; 38 are read and 3 more"):
        static.verify([4, 5, 6])
    static.verify([4, 5])
    with pytest.raises(ValueError, match="received no ids"):
        static.verify([])
    with pytest.raises(ValueError, match="between 0 and the 40 tokens"):
        static.crop(41)
    with pytest.raises(ValueError, match="room for 40"):
        static.prefill(PROMPTS[0].question, visual, [5] * (ROOM + 1))


def test_a_prompt_that_was_not_read_whole_leaves_no_answer_to_go_on_with():
    _, static = both(fake_target())
    visual = static.encode(PROMPTS[0].clip)
    static.prefill(PROMPTS[0].question, visual, [5])

    def failing() -> list[int]:
        raise RuntimeError("the drafter failed")

    with pytest.raises(RuntimeError, match="the drafter failed"):
        static.prefill(PROMPTS[0].question, visual, failing)
    with pytest.raises(ValueError, match="call prefill first"):
        static.verify([4])


@MODES
def test_warming_up_leaves_the_answer_as_it_was(exact):
    eager, static = both(fake_target(), exact=exact)
    visual = eager.encode(PROMPTS[0].clip)
    for session in (eager, static):
        session.prefill(PROMPTS[0].question, visual, [4, 5])
        session.warm()
    assert set(static._passes) == set(static.lengths)
    torch.testing.assert_close(static.verify([6, 7]), eager.verify([6, 7]), **CLOSE)


@pytest.mark.parametrize("options", [{"room": 0}, {"room": 4, "lengths": (1, 17)}, {"room": 4, "lengths": (0,)}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ConfigError, match="got"):
        StaticSession(fake_target(), **options)


@MODES
@pytest.mark.parametrize("device", DEVICES)
def test_answers_over_a_static_cache_are_the_eager_ones_and_its_capacity_is_known(device, exact):
    vlm = target_on(device)
    eager = TorchVerifier(vlm)
    static = TorchVerifier(vlm, StaticSession(vlm, room=ROOM, exact=exact, compiled=False))
    assert (eager.capacity, static.capacity) == (None, ROOM)
    for prompt in PROMPTS:
        alone = decode_plain(eager, prompt, 30, margins=True)
        again = decode_plain(static, prompt, 30, margins=True)
        assert again.ids == alone.ids
        np.testing.assert_allclose(again.margins, alone.margins, rtol=0, atol=1e-4)


def test_a_shared_prefill_over_a_static_cache_gives_the_states_of_a_whole_one():
    vlm = fake_target()
    whole, shared = TorchVerifier(vlm), SharedVerifier(vlm, StaticSession(vlm, room=ROOM))
    for draft in ([4, 5, 6], [], [7]):
        one, other = whole.prefill(PROMPTS[0], draft), shared.prefill(PROMPTS[0], draft)
        torch.testing.assert_close(other.hidden, one.hidden, **CLOSE)
        np.testing.assert_array_equal(other.ids, one.ids)


def test_a_lane_over_a_static_cache_has_the_same_states_and_answer():
    vlm = fake_drafter()
    lanes = [TorchLane(vlm, max_new_tokens=ROOM, session=s) for s in (None, StaticSession(vlm, room=ROOM))]
    for prompt in PROMPTS:
        for lane in lanes:
            lane.begin(prompt)
        for take in (
            lambda lane: lane.own(4), lambda lane: lane.synced([9, 8, 7]), lambda lane: lane.own(9),
            lambda lane: lane.synced([9, 8, 7, 6, 5]), lambda lane: lane.own(12), lambda lane: lane.synced([]),
        ):  # fmt: skip
            one, other = map(take, lanes)
            torch.testing.assert_close(other, one, **CLOSE)


def test_one_program_serves_all_layers_and_one_length_is_one_program():
    """Traced without a break: no Python between layers; a length compiles once, for both models and all sizes."""
    torch.compiler.reset()
    traced = []
    program = torch.compile(
        few_layer, dynamic=False, fullgraph=True, backend=lambda graph, inputs: traced.append(graph) or graph.forward
    )
    for vlm, room in ((fake_target(), ROOM), (fake_drafter(), 8 * ROOM)):
        static = StaticSession(vlm, room=room, lengths=(1, 3), compiled=False)
        static._padded = True  # as on a GPU
        expected = Session(vlm)
        visual = expected.encode(PROMPTS[0].clip)
        for session in (expected, static):
            session.prefill(PROMPTS[0].question, visual)
        static._held().share_programs()
        for length in static.lengths:
            static._pass(length)._layer = program
        for ids in ([4], [5, 6], [7, 8, 9], [10], [11, 12]):
            torch.testing.assert_close(static.verify(ids), expected.verify(ids), **CLOSE)
        assert len(traced) == len(static.lengths)


def test_two_programs_read_prompts_of_every_length_for_both_models():
    torch.compiler.reset()
    traced = []

    backend = lambda graph, _: traced.append(graph) or graph.forward  # noqa: E731
    programs = tuple(torch.compile(part, fullgraph=True, backend=backend) for part in chunk_layer)
    for vlm in (fake_target(), fake_drafter()):
        static, expected = StaticSession(vlm, room=ROOM, compiled=False), Session(vlm)
        visual = expected.encode(PROMPTS[0].clip)
        static.prefill("", visual)
        static._held()._chunk_pass = programs
        for question in ("what is", "what is there and what else", "is it"):
            for ids in ([4, 5], lambda: [4, 5]):
                found = static.prefill(question, visual, ids)
                torch.testing.assert_close(found, expected.prefill(question, visual, [4, 5]), **CLOSE)
    assert len(traced) == 2


def test_fused_projections_are_the_same_numbers_in_the_same_memory():
    vlm, plain = fake_target(held=2), fake_target(held=2)
    layer = vlm.language_model.layers[0]
    assert fuse(vlm.language_model) == 3 * len(vlm.language_model.layers)
    assert fuse(vlm.language_model) == 0, "done twice, nothing is left to do"
    for name, weight in plain.language_model.state_dict().items():
        torch.testing.assert_close(vlm.language_model.state_dict()[name], weight, rtol=0, atol=0)
    inputs = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    rows = [p.weight.data_ptr() for p in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)]
    assert rows == sorted(rows)
    fused = functional.linear(inputs, layer.self_attn.fused_weight)
    torch.testing.assert_close(fused[:, :WIDTH], layer.self_attn.q_proj(inputs), **CLOSE)
    sessions = [Session(vlm), StaticSession(vlm, room=ROOM), Session(plain)]
    visual = sessions[0].encode(PROMPTS[0].clip)
    one, fused, expected = (s.prefill(PROMPTS[0].question, visual, [4, 5]) for s in sessions)
    torch.testing.assert_close(one, expected, **CLOSE)
    torch.testing.assert_close(fused, expected, **CLOSE)
    torch.testing.assert_close(sessions[1].verify([6, 7]), sessions[2].verify([6, 7]), **CLOSE)


@pytest.mark.parametrize("device", DEVICES)
def test_exact_rows_are_bit_equal_however_many_travel_together(device):
    vlm = target_on(device, torch.bfloat16)
    static = StaticSession(vlm, room=ROOM, exact=True)
    visual = static.encode(PROMPTS[0].clip)
    ids = np.random.default_rng(1).integers(3, PADDED, 18)

    def states(cuts: list[int]) -> torch.Tensor:
        static.prefill(PROMPTS[0].question, visual)
        for part in np.split(ids, cuts):
            static.verify(part)
        return static.states[: len(ids) + 1].clone()

    alone = states(list(range(1, 18)))
    for cuts in ([9], [2, 7, 16], [6, 12]):
        torch.testing.assert_close(states(cuts), alone, rtol=0, atol=0)
