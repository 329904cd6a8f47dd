"""Reading and writing beside the models: they do overlap, and what fails in a thread stops the run, in one line."""

import threading
import time
from pathlib import Path

import pytest
import torch

from tests.torch_bridge.fake_pair import FakeVLM, fake_clips, fake_drafter, fake_target
from torch_bridge.answering import Pair
from torch_bridge.extraction import Settings, extract_split
from torch_bridge.overlap import Behind, Leaving, ahead
from xmsd_jax.config import UserError
from xmsd_jax.data.clip_folder import ClipFolder
from xmsd_jax.data.store import Store, StoreError, StoreWriter

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = Settings(questions=(0, 1), max_new_tokens=4, batch=1, shard_rows=8)  # 12 clips: 3 shards of 4 batches
SOON = 20  # seconds after which a test says that it hangs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fake_clips(tmp_path_factory.mktemp("clips") / "clips", {"train": 12})


@pytest.fixture(autouse=True)
def leaves_no_thread():
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("clips", "store"))]


def extracted(root: Path, folder: ClipFolder) -> Path:
    return extract_split(root, folder, "train", fake_target(), fake_drafter(), SETTINGS)


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def around(monkeypatch, owner, name, before):
    """Call `before` with the arguments ahead of a method."""
    method = getattr(owner, name)

    def called(self, *arguments, **options):
        before(*arguments)
        return method(self, *arguments, **options)

    monkeypatch.setattr(owner, name, called)


def test_the_next_batches_are_answered_while_a_shard_is_written(tmp_path, folder, monkeypatch):
    """Each write but the last waits until the whole next shard is answered: without overlap none would ever go on."""
    answered = {start: threading.Event() for start in (0, 8, 16)}
    writing, most = [], []

    def write(start, *_):
        writing.append(start)
        if start < 16:
            assert answered[start + 8].wait(SOON), "the next shard is not answered while this one is written"

    def answer(job, *_):
        done = sum(event.is_set() for event in answered.values())
        most.append(done - len(writing))
        if job.closes:
            answered[job.shard.start].set()

    around(monkeypatch, StoreWriter, "write", write)
    around(monkeypatch, Pair, "_answer", answer)
    extracted(tmp_path, folder)
    assert writing == [0, 8, 16]
    assert max(most) <= 1, "at most one shard waits to be written"


def test_at_most_one_call_is_under_way():
    first, begun, order = threading.Event(), threading.Event(), []
    with Behind() as behind:
        behind(lambda: order.append("first") if first.wait(SOON) else None)
        second = threading.Thread(target=lambda: (begun.set(), behind(lambda: order.append("second"))))
        second.start()
        begun.wait(SOON)
        second.join(0.1)
        assert second.is_alive(), "the second call waits for the first one"
        behind.check()  # does not wait
        first.set()
        second.join(SOON)
    assert order == ["first", "second"]


def test_an_error_of_the_writer_stops_the_run_at_the_next_batch(tmp_path, folder, monkeypatch):
    begun, failed, answered = threading.Event(), threading.Event(), []

    def write(*_):
        assert begun.wait(SOON)
        failed.set()
        raise StoreError("store: the disk is full")

    def answer(job, *_):
        answered.append(job)
        if len(answered) == 5:  # the first batch of the second shard: the writer fails beside it
            begun.set()
            assert failed.wait(SOON)
            time.sleep(0.2)

    around(monkeypatch, StoreWriter, "write", write)
    around(monkeypatch, Pair, "_answer", answer)
    with pytest.raises(StoreError, match=r"^store: the disk is full$"):
        extracted(tmp_path, folder)
    assert len(answered) == 5


def test_an_error_of_the_last_write_is_raised_too(tmp_path, folder, monkeypatch):
    def write(start, *_):
        if start == 16:
            raise StoreError("store: the disk is full")

    around(monkeypatch, StoreWriter, "write", write)
    with pytest.raises(StoreError, match=r"^store: the disk is full$"):
        extracted(tmp_path, folder)
    with pytest.raises(StoreError, match="unfinished"):
        Store.open(tmp_path / "train")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (OSError(5, "Input/output error"), UserError, r"clips: clip {} cannot be read \(\[Errno 5\] .*make the clips"),
        (UserError("no frame in it"), UserError, r"clips: clip {} cannot be read \(no frame in it\)"),
        (UserError("{}.npz: damaged"), UserError, r"^{}\.npz: damaged$"),
    ],
)
def test_an_error_while_a_clip_is_read_names_the_clip(tmp_path, folder, monkeypatch, error, kind, said):
    name = folder.entries("train")[6].name

    def pixels(clip):
        if clip.name == name:
            raise type(error)(*(part.format(name) if isinstance(part, str) else part for part in error.args))

    around(monkeypatch, FakeVLM, "pixels", pixels)
    with pytest.raises(kind, match=said.format(name)):
        extracted(tmp_path, folder)


def test_a_fault_of_the_program_keeps_its_kind_and_says_which_clip(tmp_path, folder, monkeypatch):
    def pixels(clip):
        raise TypeError("a fault")

    around(monkeypatch, FakeVLM, "pixels", pixels)
    with pytest.raises(TypeError, match="a fault") as raised:
        extracted(tmp_path, folder)
    assert folder.entries("train")[0].name in raised.value.__notes__[0]


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, ValueError])
def test_a_run_that_is_stopped_between_goes_on_to_the_same_bytes(tmp_path, folder, monkeypatch, stopped):
    whole, count = extracted(tmp_path / "whole", folder), []

    def answer(*_):
        count.append(1)
        if len(count) == 7:
            raise stopped

    with monkeypatch.context() as patch:
        around(patch, Pair, "_answer", answer)
        with pytest.raises(stopped):
            extracted(tmp_path / "again", folder)
    again = extracted(tmp_path / "again", folder)
    assert contents(again) == contents(whole)


def test_what_is_not_read_yet_is_left_when_the_reader_is_closed():
    read, go = [], threading.Event()
    groups = ahead([[0], range(1, 50), range(50, 99)], lambda item: read.append(item) or (item and go.wait(SOON)), 2)
    assert next(groups) == [0]
    threading.Timer(0.2, go.set).start()
    groups.close()
    assert len(read) < 10


def test_numbers_that_left_do_not_change_with_the_tensor():
    tensor = torch.arange(4, dtype=torch.bfloat16)
    left = Leaving({"x": tensor.clone()}).arrays()["x"]
    assert left.astype(float).tolist() == [0, 1, 2, 3]
    assert left.dtype.name == "bfloat16"
