"""Which clips are answered together: planned from memory, halved where it does not suffice; numbers stay the same."""

import gc
import re
import weakref
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from tests.torch_bridge.fake_pair import FakeVLM, fake_clip, fake_clips, fake_drafter, fake_target
from torch_bridge import batching
from torch_bridge.answering import Pair
from torch_bridge.answers import Batch
from torch_bridge.batching import Job, clip_bytes, evenly, planned_clips, ran_out
from torch_bridge.decode import Decoder
from torch_bridge.extraction import Settings, extract_split
from torch_bridge.overlap import Span
from torch_bridge.shared_prefix import SharedPrefix
from xmsd_jax.config import UserError
from xmsd_jax.data.parts import Part
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.store import Store

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS_OF_DEVICES = [("cpu", "cpu"), *([("cuda:0", "cuda:1")] if torch.cuda.device_count() > 1 else [])]
SETTINGS = Settings(max_new_tokens=8, batch=4, shard_rows=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fake_clips(tmp_path_factory.mktemp("clips") / "clips", {"train": 10})


def extracted(root, folder, settings, **more):
    return Store.open(extract_split(root, folder, "train", fake_target(), fake_drafter(), settings, **more))


def assert_same_answers(one: Store, other: Store, atol: float = 5e-5) -> None:
    for name in ("target_ids", "drafter_ids", "target_len", "drafter_len", "clip", "question"):
        np.testing.assert_array_equal(one.read(name), other.read(name))
    for name in ("target_hidden", "drafter_hidden", "drafter_synced"):
        np.testing.assert_allclose(one.read(name), other.read(name), rtol=0, atol=atol)


def clips_in(store: Store) -> list[list[int]]:
    return [clips for note in store.notes().values() for clips in note["batches"]]


def out_of_memory_above(limit: int, patch: pytest.MonkeyPatch) -> None:
    """A device whose memory holds the prefixes of `limit` clips."""
    read = SharedPrefix.read_prefix

    def small(self, inputs):
        if len(inputs) > limit:
            raise torch.cuda.OutOfMemoryError("as a GPU says it")
        read(self, inputs)

    patch.setattr(SharedPrefix, "read_prefix", small)


def test_a_batch_that_does_not_fit_is_halved_and_so_are_all_that_follow(tmp_path, folder, monkeypatch):
    whole = extracted(tmp_path / "whole", folder, SETTINGS)
    tried, answer = [], Pair._answer
    monkeypatch.setattr(
        Pair, "_answer", lambda self, job, *rest: tried.append(len(job.clips)) or answer(self, job, *rest)
    )
    out_of_memory_above(2, monkeypatch)
    halved = extracted(tmp_path / "halved", folder, SETTINGS)
    assert_same_answers(halved, whole)
    assert tried.count(4) == 1, "the size that failed is not tried again"
    assert max(map(len, clips_in(halved))) == 2
    assert max(map(len, clips_in(whole))) == 4
    assert list(chain(*clips_in(halved))) == list(chain(*clips_in(whole)))


def test_one_clip_that_does_not_fit_is_a_clear_error(tmp_path, folder, monkeypatch):
    out_of_memory_above(0, monkeypatch)
    with pytest.raises(UserError, match="one clip with 10 questions does not fit"):
        extracted(tmp_path, folder, SETTINGS)


def test_not_even_what_is_looked_at_first_to_plan_a_batch_fits(tmp_path, folder, monkeypatch):
    def look(self, pixels):
        raise torch.OutOfMemoryError("as a GPU says it")

    monkeypatch.setattr(FakeVLM, "look", look)
    with pytest.raises(UserError, match="one clip with 10 questions does not fit"):
        extracted(tmp_path, folder, replace(SETTINGS, batch=None))


PLACES = [(FakeVLM, "look_all", 2), (Decoder, "__init__", 2), (Decoder, "run", 1), (Batch, "read_answers", 1)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("side_by_side", [False, True])
def test_memory_may_run_out_anywhere_in_a_batch(tmp_path, folder, monkeypatch, place, side_by_side):
    """Where the first batch fails, halves go on, with the same answers; by then nothing of it is held any more."""
    whole = extracted(tmp_path / "whole", folder, SETTINGS)
    owner, name, number = place
    method, take, answer = getattr(owner, name), SharedPrefix.__init__, Pair._answer
    calls, held, memories = [], [], weakref.WeakSet()

    def call(self, *arguments, **options):
        calls.append(name)
        if len(calls) == number:
            raise torch.OutOfMemoryError("as a GPU says it")
        return method(self, *arguments, **options)

    def taken(self, *arguments):
        memories.add(self)
        take(self, *arguments)

    def tried(self, *arguments):
        held.append(len(memories))
        return answer(self, *arguments)

    monkeypatch.setattr(owner, name, call)
    monkeypatch.setattr(Pair, "_answer", tried)
    monkeypatch.setattr(SharedPrefix, "__init__", taken)
    monkeypatch.setattr(Pair, "_side_by_side", side_by_side)
    with disabled_collector():
        halved = extracted(tmp_path / "halved", folder, SETTINGS)
    assert held[:2] == [0, 0], "what the failed batch held is held when its first half begins"
    assert_same_answers(halved, whole)
    assert clips_in(halved) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


@contextmanager
def disabled_collector():
    """Cycles are found only by who asks for it."""
    gc.disable()
    yield
    gc.enable()


def test_what_is_not_for_want_of_memory_is_raised_as_it_is(tmp_path, folder, monkeypatch):
    def run(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Decoder, "run", run)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        extracted(tmp_path, folder, SETTINGS)


def hidden_by(first: Exception, second: Exception) -> Exception:
    """The second error, as it comes out of the end of a `with` that the first one left."""
    try:
        try:
            raise first
        finally:
            raise second
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("error", "ran"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 byte"), True),
        (MemoryError(), True),
        (hidden_by(torch.OutOfMemoryError("x"), RuntimeError("operation failed due to a previous error")), True),
        (hidden_by(ValueError("out of memory"), RuntimeError("operation failed")), False),
        (RuntimeError("device-side assert triggered"), False),
    ],
)
def test_want_of_memory_is_known_in_all_its_forms(error, ran):
    assert ran_out(error) is ran


def test_a_run_planned_with_other_memory_goes_on_in_the_same_store(tmp_path, folder, monkeypatch):
    """What was planned is noted shard by shard; the answers are those of any other batches."""
    planned = replace(SETTINGS, batch=None, shard_rows=20)
    whole = extracted(tmp_path / "whole", folder, planned)
    with monkeypatch.context() as patch:
        patch.setattr(batching, "WITHOUT_GPU", 2)
        extract_split(
            tmp_path / "two", folder, "train", fake_target(), fake_drafter(), planned, Part(number=1, count=2)
        )
    monkeypatch.setattr(batching, "WITHOUT_GPU", 1)
    resumed = extracted(tmp_path / "two", folder, planned)
    assert clips_in(resumed) == [[0, 1], [2], [3], [4, 5], [6], [7], [8, 9]]
    assert_same_answers(resumed, whole)


@pytest.mark.parametrize(("questions", "rows"), [((0, 3, 7), 10), ((5,), 4), (tuple(range(10)), 25), ((1, 2), 64)])
def test_shards_that_cut_clips_and_smaller_last_batches_give_the_same_rows(tmp_path, folder, questions, rows):
    cut = extracted(tmp_path / "cut", folder, replace(SETTINGS, questions=questions, batch=3, shard_rows=rows))
    plain = extracted(tmp_path / "plain", folder, replace(SETTINGS, questions=questions, batch=1, shard_rows=1000))
    assert cut.rows == 10 * len(questions)
    assert_same_answers(cut, plain)


def test_halves_hold_every_clip_and_the_second_closes_the_shard():
    job = Job(shard=range(30), clips=(3, 4, 5), questions=(0, 1), closes=True)
    first, second = job.halves()
    assert (first.clips, second.clips) == ((3,), (4, 5))
    assert (first.closes, second.closes) == (False, True)
    assert first.questions == second.questions == job.questions


@pytest.mark.parametrize("places", PAIRS_OF_DEVICES)
def test_models_on_two_devices_answer_side_by_side_as_one_after_the_other(tmp_path, folder, monkeypatch, places):
    """On two GPUs each model captures its own decode step while the other one works."""
    apart, pair = extracted(tmp_path / "one", folder, SETTINGS), (fake_target(), fake_drafter())
    for vlm, place in zip(pair, places, strict=True):
        vlm.model.to(place)
    monkeypatch.setattr(Pair, "_side_by_side", True)
    beside = extract_split(tmp_path / "two", folder, "train", *pair, replace(SETTINGS, batch=3))
    assert_same_answers(Store.open(beside), apart, atol=5e-5 if places[0] == "cpu" else 1e-3)


@pytest.mark.parametrize(("most", "clips", "size"), [(19, 32, 16), (32, 32, 32), (1, 32, 1), (31, 32, 16), (5, 3, 3)])
def test_the_batches_of_a_shard_are_equally_large(most, clips, size):
    assert evenly(most, clips) == size


def test_a_planned_batch_fills_the_free_memory_and_no_more(monkeypatch):
    target = fake_target()
    monkeypatch.setattr(type(target), "device", property(lambda self: torch.device("cuda")))
    monkeypatch.setattr(batching, "_fixed_bytes", lambda vlm: 1000)
    each = clip_bytes(target, 8, QUESTIONS, 16)
    for fits in (1, 3, 20):
        monkeypatch.setattr(batching, "_free", lambda device, fits=fits: int((1000 + fits * each + 10) / batching.USED))
        assert planned_clips([(target, 8)], QUESTIONS, 16, 10_000) == evenly(fits, 1000)
    assert planned_clips([(target, 8), (target, 8)], QUESTIONS, 16, 10_000) == evenly(10, 1000), "both on one device"


def test_the_bytes_of_a_clip_are_those_that_its_memory_takes():
    target = fake_target()
    one, two = (Batch(target, fake_clip_list(count), QUESTIONS, room=16)._memory for count in (1, 2))
    held = [sum(x.nbytes for pair in (*m._prefix, *m._own) for x in pair) for m in (one, two)]
    states = 3 * 16 * target.width * 4 * len(QUESTIONS) + 2 * target.lm_head.out_features * 4 * len(QUESTIONS)
    assert clip_bytes(target, 8, QUESTIONS, 16) == held[1] - held[0] + states


def fake_clip_list(count: int):
    return [fake_clip(number) for number in range(count)]


def test_without_a_gpu_a_planned_batch_is_small(tmp_path, folder):
    planned = extracted(tmp_path, folder, replace(SETTINGS, batch=None))
    assert max(map(len, clips_in(planned))) <= batching.WITHOUT_GPU
    assert "planned" in planned.manifest.batch["clips"]


def test_a_rows_own_prefix_gives_what_the_shared_one_gives():
    target, clips = fake_target(), fake_clip_list(2)
    shared = Batch(target, clips, QUESTIONS[:3]).answer(12)
    own = Batch(target, clips, QUESTIONS[:3], share=False).answer(12)
    assert torch.equal(own.ids, shared.ids)
    torch.testing.assert_close(own.hidden, shared.hidden, rtol=0, atol=5e-5)


def test_attention_in_groups_of_clips_is_that_of_all_at_once(monkeypatch):
    target, clips = fake_target(), fake_clip_list(3)
    whole = Batch(target, clips, QUESTIONS[:2]).answer(8)
    monkeypatch.setattr("torch_bridge.shared_prefix.SCORES", 1)
    monkeypatch.setattr("torch_bridge.shared_prefix.PREFIX_TOKENS", 1)
    parts = Batch(target, clips, QUESTIONS[:2]).answer(8)
    assert torch.equal(parts.ids, whole.ids)
    torch.testing.assert_close(parts.hidden, whole.hidden, rtol=0, atol=5e-5)


def test_more_tokens_than_there_is_room_for_are_refused():
    batch = Batch(fake_target(), fake_clip_list(1), QUESTIONS[:1], room=4)
    with pytest.raises(ValueError, match=re.escape("room for 4 tokens of an answer, asked for 5")):
        batch.answer(5)


def test_spans_follow_each_other():
    device = torch.device("cpu")
    first = Span(device)
    first.stop()
    second = Span(device)
    second.stop()
    assert first.seconds >= 0
    assert second.gap(first) >= 0
