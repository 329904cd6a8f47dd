import contextlib
import io
import os
import pickle
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmsd_jax.data.events import EventError, Events
from xmsd_jax.data.npy import read_event_npy

fuzz = settings(max_examples=300, deadline=None)
HEADER = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
COLUMNS = {
    "p": np.array([0, 1, 1], np.uint8),
    "t": np.array([100, 100, 250], np.int64),
    "x": np.array([3, 0, 9], np.uint16),
    "y": np.array([1, 2, 0], np.uint16),
}


def as_npy(pickled: bytes, header: bytes = HEADER) -> bytes:
    header = header.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickled


def saved(record) -> bytes:
    file = io.BytesIO()
    np.save(file, record, allow_pickle=True)
    return file.getvalue()


def read(folder: Path, content: bytes, **options) -> Events:
    path = folder / "events.npy"
    path.write_bytes(content)
    return read_event_npy(path, **options)


def old_numpy(record) -> bytes:
    """As numpy 1.x wrote it: protocol 3, the module numpy.core.multiarray."""
    outer = np.empty((), object)
    outer[()] = record
    return as_npy(pickle.dumps(outer, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


@pytest.mark.parametrize("write", [saved, old_numpy])
def test_a_file_of_numpy_1_or_2_reads_as_what_was_saved(write, tmp_path):
    events = read(tmp_path, write(COLUMNS))
    for name, column in COLUMNS.items():
        assert np.array_equal(getattr(events, name), column)
        assert getattr(events, name).dtype == column.dtype
    assert (events.height, events.width) == (3, 10)
    assert read(tmp_path, write(COLUMNS), size=(480, 640)).width == 640


def test_other_number_types_byte_orders_and_plain_extras_are_read(tmp_path):
    record = {
        "p": np.array([False, True, True]), "t": COLUMNS["t"].astype(">i8"), "x": COLUMNS["x"].astype(np.int32),
        "y": COLUMNS["y"].astype(">u2"), "height": np.int64(480), "camera": "left", "gain": 1.5,
        "tags": ["a", (1, None)],
    }  # fmt: skip
    events = read(tmp_path, saved(record))
    assert all(np.array_equal(getattr(events, name), COLUMNS[name]) for name in "xypt")


def test_the_real_file_reads_as_numpy_itself_would_unpickle_it(needs_shared):
    path = needs_shared / "data" / "dsec_interlaken_00_d_000099.npy"
    events = read_event_npy(path)
    trusted = np.load(path, allow_pickle=True)[()]
    assert (len(events), events.height, events.width) == (135_853, 480, 640)
    assert all(np.array_equal(getattr(events, name), trusted[name]) for name in "xypt")


class Calls:
    """Pickles as a call of `function(*arguments)`, then `state`."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def inside(value) -> bytes:
    return saved({**COLUMNS, "extra": value})


def hostile(marker: Path) -> dict[str, bytes]:
    """Files that do something (most: make `marker`) in an ordinary unpickler."""
    touch = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w').close()"
    system = as_npy(b"cos\nsystem\n(V" + touch.encode() + b"\ntR.")
    return {
        "os.system": saved(Calls(os.system, touch)),
        "os.system in place of an array": saved({**COLUMNS, "x": Calls(os.system, touch)}),
        "os.system beside good arrays": inside(Calls(os.system, touch)),
        "os.system by text opcodes": system,
        "eval": inside(Calls(eval, code)),
        "exec": inside(Calls(exec, code)),
        "getattr chain": inside(Calls(eval, f"getattr(__import__('os'), 'system')({touch!r})")),
        "INST opcode": as_npy(b"(S'" + touch.encode() + b"'\nios\nsystem\n."),
        "OBJ opcode": as_npy(b"(cos\nsystem\nV" + touch.encode() + b"\no."),
        "callable as state of an array": as_npy(
            pickle.dumps(Calls(np.ndarray, (0,), state=Calls(eval, code)), protocol=4)
        ),
    }  # fmt: skip


@pytest.mark.parametrize("attack", sorted(hostile(Path("none"))))
def test_a_hostile_file_is_refused_and_never_executed(attack, tmp_path):
    marker = tmp_path / "ran"
    content = hostile(marker)[attack]
    with pytest.raises(EventError, match=r"events\.npy: refused"):
        read(tmp_path, content)
    assert not marker.exists()
    # The attack is a real one: an ordinary unpickler runs it.
    with contextlib.suppress(TypeError):  # what the call returned may fit nowhere, after the call
        pickle.loads(content[128:])
    assert marker.exists()


REACHES = {
    "numpy.load": lambda: inside(Calls(np.load, "other.npy")),
    "numpy.fromfile": lambda: inside(Calls(np.fromfile, "/etc/passwd")),
    "numpy.testing": lambda: inside(Calls(np.testing.assert_equal, 1, 1)),
    "numpy.memmap": lambda: as_npy(b"cnumpy\nmemmap\n(V/etc/passwd\ntR."),
    "numpy.ndarray called": lambda: as_npy(b"cnumpy\nndarray\n((K\x0attR."),
    "dotted name": lambda: as_npy(b"\x80\x04\x8c\x05numpy\x8c\x0dtesting.utils\x93."),
    "module that looks near": lambda: as_npy(b"cnumpy.core.multiarray\nfrombuffer\n(U\x01atR."),
    "array of objects inside": lambda: saved({**COLUMNS, "x": np.array([1, "a", None], object)}),
    "structured dtype": lambda: saved({**COLUMNS, "x": np.zeros(3, [("a", "u2")])}),
    "text dtype": lambda: saved({**COLUMNS, "x": np.array(["a", "b", "c"])}),
    "datetime": lambda: saved({**COLUMNS, "t": np.zeros(3, "M8[us]")}),
    "set": lambda: inside({1, 2}),
    "bytearray": lambda: inside(bytearray(b"abc")),
    "class instance": lambda: inside(Path("a")),
    "extension code": lambda: as_npy(b"\x80\x02\x82\x01."),
    "persistent id": lambda: as_npy(b"Pfile\n."),
    "array subclass": lambda: saved({**COLUMNS, "x": np.ma.array(COLUMNS["x"])}),
    "2-d array": lambda: saved({**COLUMNS, "x": np.zeros((3, 1), np.uint16)}),
    "other keys": lambda: saved({"x": COLUMNS["x"]}),
    "list for an array": lambda: saved({**COLUMNS, "x": [3, 0, 9]}),
    "no dict": lambda: saved(np.array([1, None], object)),
    "plain numbers": lambda: saved(np.arange(5)),
    "text": lambda: b"x,y,p,t\n1,2,0,3\n",
    "nothing": lambda: b"",
    "zip": lambda: b"PK\x03\x04" + bytes(200),
    "surrogates in a key": lambda: as_npy(b"\x80\x04}\x8c\x03\xed\xa0\x80K\x01s."),
    "version 3 header": lambda: b"\x93NUMPY\x03\x00" + saved(COLUMNS)[8:],
    "python in the header": lambda: as_npy(pickle.dumps(COLUMNS), b"__import__('os').system('true')"),
    "announced length of 2^62": lambda: as_npy(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"abc."),
    "memo index of 2^31": lambda: as_npy(b"\x80\x04Nr\xff\xff\xff\x7f."),
    "pop from nothing": lambda: as_npy(b"\x80\x04\x85."),
    "mark without end": lambda: as_npy(b"\x80\x04(."),
    "items without mark": lambda: as_npy(b"\x80\x04u."),
    "get of what was not put": lambda: as_npy(b"\x80\x04h\x05."),
    "state on a list": lambda: as_npy(b"\x80\x04]}b."),
    "endless opcodes": lambda: as_npy(b"\x80\x04" + b"N" * 1_000_000 + b"."),
    "deep tuples": lambda: as_npy(b"\x80\x04N" + b"\x85" * 9_000 + b"."),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", sorted(REACHES))
def test_anything_but_a_dict_of_number_arrays_is_refused_in_one_line(case, tmp_path):
    with pytest.raises(EventError) as caught:
        read(tmp_path, REACHES[case]())
    text = str(caught.value)
    assert text.startswith(str(tmp_path / "events.npy"))
    assert len(text.splitlines()) == 1
    text.encode()  # a lone surrogate from the file could not be printed


def test_a_key_that_takes_for_ever_to_hash_is_refused_at_once(tmp_path):
    nested = b"K\x01" + b"q\x00h\x00\x86" * 200  # each tuple holds the one before twice: 2^200 leaves
    start = time.perf_counter()
    with pytest.raises(EventError, match="keys are not text"):
        read(tmp_path, as_npy(b"\x80\x04}" + nested + b"Ns."))
    assert time.perf_counter() - start < 1


def test_bad_events_in_a_good_file_are_refused_by_name(tmp_path):
    for change, words in (
        ({"t": COLUMNS["t"][::-1]}, "not sorted"), ({"p": COLUMNS["p"] * 2}, "0 or 1"),
        ({"p": COLUMNS["p"][:2]}, "one length"), ({"x": COLUMNS["x"].astype(float)}, "integer"),
        ({name: column[:0] for name, column in COLUMNS.items()}, "no event"),
    ):  # fmt: skip
        with pytest.raises(EventError, match=words):
            read(tmp_path, saved({**COLUMNS, **change}))
    with pytest.raises(EventError, match="out of the frame"):
        read(tmp_path, saved(COLUMNS), size=(3, 9))


def test_missing_too_large_and_unreadable_paths_are_refused(tmp_path):
    with pytest.raises(EventError, match="no such file"):
        read_event_npy(tmp_path / "none.npy")
    with pytest.raises(EventError, match="the limit is 100"):
        read(tmp_path, saved(COLUMNS), max_bytes=100)
    with pytest.raises(EventError, match="refused"):
        read_event_npy(tmp_path)


def test_every_truncation_is_refused(tmp_path):
    content = saved(COLUMNS)
    for length in range(len(content)):
        with pytest.raises(EventError):
            read(tmp_path, content[:length])


def check_read_or_refuse(folder: Path, content: bytes) -> None:
    """Nothing but checked events or EventError may come out."""
    try:
        events = read(folder, content)
    except EventError:
        return
    assert len(events.t)
    assert (np.diff(events.t) >= 0).all()
    assert events.p.max() <= 1


@fuzz
@given(data=st.data(), old=st.booleans())
def test_damaged_bytes_give_events_or_an_event_error(data, old, tmp_path_factory):
    content = bytearray((old_numpy if old else saved)(COLUMNS))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(128, len(content) - 1))
        length = data.draw(st.integers(0, 3))
        content[at : at + length] = data.draw(st.binary(max_size=4))
        content += b"." * max(0, 129 - len(content))
    check_read_or_refuse(tmp_path_factory.getbasetemp(), bytes(content))


PIECES = (
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"cbuiltins\ngetattr\n", b"cnumpy\nload\n", b"cnumpy\nndarray\n",
    b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy._core.multiarray\nscalar\n",
    b"\x8c\x02os", b"\x8c\x06system", b"\x93", b"\x8c\x04true", b"\x8c\x02u2", b"\x8c\x01x", b"C\x02ab", b"K\x00",
    b"K\x01", b"J\xff\xff\xff\xff", b"N", b"\x88", b"\x89", b"(", b")", b"]", b"}", b"t", b"\x85", b"\x86", b"\x87",
    b"R", b"b", b"s", b"u", b"a", b"e", b"\x94", b"q\x00", b"h\x00", b"h\x01", b"\x81", b"o", b"0", b"2", b"Q",
    b"\x82\x01",
)  # fmt: skip


@fuzz
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=40))
def test_random_pickle_programs_are_refused_without_a_call(pieces, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "system", lambda _: pytest.fail("a pickle ran os.system"))
        check_read_or_refuse(tmp_path_factory.getbasetemp(), as_npy(b"\x80\x04" + b"".join(pieces) + b"."))
