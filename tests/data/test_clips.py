import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmsd_jax.data.clips import Clip, ClipError, load_clip, read_npz, save_clip
from xmsd_jax.data.events import EventError, Events


def make_clip(seed: int = 0, n: int = 40, **changes) -> Clip:
    rng = np.random.default_rng(seed)
    events = Events(
        x=rng.integers(0, 8, n).astype(np.uint16), y=rng.integers(0, 6, n).astype(np.uint16),
        p=rng.integers(0, 2, n).astype(np.uint8), t=np.sort(rng.integers(-500, 1_000_000, n)), height=6, width=8,
    )  # fmt: skip
    clip = Clip(
        name=f"clip_{seed}", sequence="street", events=events,
        video=rng.integers(0, 256, (4, 5, 7, 3)).astype(np.uint8),
        frame_times_us=np.arange(4) * 250_000, facts={"time": "day", "vehicles": [{"x": 1.5}]},
        start_us=-500, stop_us=1_000_000,
    )  # fmt: skip
    return replace(clip, **changes)


def assert_equal(left: Clip, right: Clip) -> None:
    for name in ("name", "sequence", "start_us", "stop_us"):
        assert getattr(left, name) == getattr(right, name)
    assert dict(left.facts) == dict(right.facts)
    assert (left.events.height, left.events.width) == (right.events.height, right.events.width)
    pairs = [(getattr(left.events, name), getattr(right.events, name)) for name in "xypt"]
    for a, b in (*pairs, (left.video, right.video), (left.frame_times_us, right.frame_times_us)):
        assert np.array_equal(a, b)
        assert a.dtype == b.dtype


facts = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5)
    | st.floats(-1e30, 1e30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), n=st.integers(0, 30), known=st.dictionaries(st.text(max_size=4), facts, max_size=3))
def test_a_saved_clip_loads_equal_with_the_same_fingerprint(seed, n, known, tmp_path_factory):
    clip = make_clip(seed, n, facts=known)
    path = tmp_path_factory.getbasetemp() / "round_trip.npz"
    save_clip(path, clip)
    loaded = load_clip(path)
    assert_equal(loaded, clip)
    assert loaded.fingerprint() == clip.fingerprint()


def test_the_same_clip_gives_the_same_bytes_in_a_file_numpy_reads_without_objects(tmp_path):
    clip = make_clip()
    save_clip(tmp_path / "a.npz", clip)
    save_clip(tmp_path / "deep" / "b.npz", clip)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "deep" / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert archive["meta"].dtype == np.uint8
        assert np.array_equal(archive["t"], clip.events.t)


def test_any_changed_part_changes_the_fingerprint():
    clip = make_clip()
    events, video = clip.events, clip.video.copy()
    video[0, 0, 0, 0] ^= 1
    changed = [
        replace(clip, name="other"), replace(clip, sequence="other"), replace(clip, facts={}),
        replace(clip, start_us=-501), replace(clip, stop_us=1_000_001), replace(clip, video=video),
        replace(clip, frame_times_us=clip.frame_times_us + 1), replace(clip, events=events[1:]),
        replace(clip, events=replace(events, width=9)), replace(clip, events=replace(events, p=1 - events.p)),
    ]  # fmt: skip
    assert len({c.fingerprint() for c in [clip, make_clip(), *changed]}) == len(changed) + 1


def test_a_failed_save_leaves_the_former_file_and_nothing_else(tmp_path):
    save_clip(tmp_path / "a.npz", make_clip())
    before = (tmp_path / "a.npz").read_bytes()
    with pytest.raises(TypeError):
        save_clip(tmp_path / "a.npz", make_clip(facts={"a": object()}))
    assert (tmp_path / "a.npz").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


def test_a_missing_truncated_or_foreign_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "a.npz"
    save_clip(path, make_clip())
    whole = path.read_bytes()
    contents = [whole[:length] for length in range(0, len(whole), 7)]
    contents += [b"", b"text", b"PK\x03\x04" + bytes(100), whole[: len(whole) // 2] + whole[-400:]]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ClipError) as caught:
            load_clip(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ClipError, match="no such file"):
        load_clip(tmp_path / "none.npz")
    with pytest.raises(ClipError, match="not a readable npz"):
        load_clip(tmp_path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_the_same_clip_or_a_refusal(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    clip = make_clip()
    save_clip(path, clip)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        loaded = load_clip(path)
    except (ClipError, EventError):
        return
    assert_equal(loaded, clip)


def rewritten(path, **changes):
    save_clip(path, make_clip())
    with np.load(path) as archive:
        arrays = dict(archive)
    meta = json.loads(arrays["meta"].tobytes()) | changes.pop("meta", {})
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez(path, **{**arrays, **changes})
    return path


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"t": np.arange(40)[::-1].copy()}, EventError, "not sorted"),
        ({"x": np.full(40, 8)}, EventError, "out of the frame"),
        ({"p": np.zeros(39, np.uint8)}, EventError, "one length"),
        ({"video": np.zeros((3, 5, 7, 3), np.uint8)}, ClipError, "frame times"),
        ({"video": np.zeros((4, 5, 7, 3))}, ClipError, "uint8"),
        ({"frame_times_us": np.array([0, 1, 1, 2])}, ClipError, "increase"),
        ({"frame_times_us": np.array([0.0, np.nan, 1, 2])}, ClipError, "integers"),
        ({"meta": {"format": "other"}}, ClipError, "xmsd-clip-1"),
        ({"meta": {"start_us": "zero"}}, ClipError, "meta"),
        ({"meta": {"extra": 1}}, ClipError, "meta"),
        ({"x": np.array([{}], object)}, ClipError, "not a readable npz"),
    ],
)
def test_a_clip_file_that_breaks_its_contract_is_refused(changes, kind, words, tmp_path):
    path = rewritten(tmp_path / "a.npz", **changes)
    with pytest.raises(kind, match=words):
        load_clip(path)


def test_an_archive_without_the_arrays_is_named_with_what_it_holds(tmp_path):
    np.savez(tmp_path / "a.npz", frames=np.zeros(3), ft=np.zeros(3))
    with pytest.raises(ClipError, match=r"lacks x, y.*'frames', 'ft'"):
        load_clip(tmp_path / "a.npz")


def test_an_archive_that_declares_too_much_is_refused_before_it_is_read(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(100_000))
    monkeypatch.setattr("xmsd_jax.data.clips._MAX_BYTES", 10_000)
    with pytest.raises(ClipError, match="the limit is 10000"):
        read_npz(tmp_path / "a.npz", ("x",))
