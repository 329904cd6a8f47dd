"""Anchors: right lengths by hand, walks equal to the offline walk, prefix shares that are no speed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.decoding.toy import Scripted, toy_prompt
from xmsd_jax.config import UserError
from xmsd_jax.decoding.walk import prefix_counts, walk
from xmsd_jax.metrics.acceptance import Anchors, right_lengths
from xmsd_jax.metrics.counted import ratio_of_sums

ANSWER = [10, 11, 12, 13, 14, 15, 16, 2]
SCRIPT = [9, 11, 12, 13, 9, 15, 16, 2, 5, 5, 5]  # wrong at 0 and 4


def drafted_by(script, positions: int, gamma: int, lengths=()) -> np.ndarray:
    """What `Scripted` drafts at every anchor: int[positions, gamma], -1 where it drafts nothing."""
    drafted = np.full((positions, gamma), -1, np.int32)
    for anchor in range(positions):
        start = anchor + 1
        length = min(gamma, lengths[start % len(lengths)]) if lengths else gamma
        ids = list(script)[start : start + length]
        drafted[anchor, : len(ids)] = ids
    return drafted


def anchors_of(answers, scripts, gamma: int, lengths=(), free=None) -> Anchors:
    positions = max(map(len, answers))
    target_ids = np.full((len(answers), positions), 77, np.int32)  # padding that a draft must not match
    for row, answer in enumerate(answers):
        target_ids[row, : len(answer)] = answer
    drafted = np.stack([drafted_by(script, positions, gamma, lengths) for script in scripts])
    target_len = np.array([len(a) for a in answers], np.int32)
    free = np.zeros(len(answers), np.int32) if free is None else np.array(free, np.int32)
    return Anchors(
        right=right_lengths(drafted, target_ids, target_len), gamma=gamma, target_len=target_len, free=free
    )  # fmt: skip


def test_right_lengths_by_hand():
    anchors = anchors_of([ANSWER, [10, 11]], [SCRIPT, SCRIPT], 2)
    assert anchors.right.tolist() == [[2, 2, 1, 0, 2, 2, 1, -1], [1, -1, -1, -1, -1, -1, -1, -1]]
    assert anchors.right.dtype == np.int32


def test_positions_past_the_end_are_misses_even_where_the_padding_agrees():
    right = right_lengths(np.full((1, 4, 3), 7), np.full((1, 4), 7), [2])
    assert right.tolist() == [[1, -1, -1, -1]]


def test_an_id_that_stands_for_no_draft_is_never_right():
    right = right_lengths(np.array([[[-1, 5], [5, -1], [5, 5]]]), np.array([[5, -1, 5]]), [3])
    assert right.tolist() == [[0, 1, -1]]


def test_the_walk_tau_and_shares_by_hand():
    # gamma 2: anchors 0, 3, 4 accept 2, 0, 2 and emit 7 tokens; gamma 1: anchors 0, 2, 4, 6, one accepted at each
    anchors = anchors_of([ANSWER, [10]], [SCRIPT, SCRIPT], 2)
    counts = anchors.walk(2)
    assert (counts.iterations.tolist(), counts.emitted.tolist()) == ([3, 0], [7, 0])
    assert np.flatnonzero(anchors.visited(2)[0]).tolist() == [0, 3, 4]
    assert np.flatnonzero(anchors.visited(1)[0]).tolist() == [0, 2, 4, 6]
    assert anchors.tau(2, sequences=["a", "b"]).value == pytest.approx(7 / 3)
    right, of = anchors.prefix_counts(2)
    assert (right.tolist(), of.tolist()) == ([[6, 4], [0, 0]], [7, 0])
    assert anchors.prefix_shares(2) == pytest.approx([6 / 7, 4 / 7])
    assert anchors.prefix_shares(2, anchors.visited(2)) == pytest.approx([2 / 3, 2 / 3])


def test_the_walk_starts_after_the_free_prefix_unless_told_otherwise():
    anchors = anchors_of([ANSWER, ANSWER, ANSWER], [SCRIPT] * 3, 2, free=[3, 8, 7])
    counts = anchors.walk(2)
    assert (counts.iterations.tolist(), counts.emitted.tolist()) == ([2, 0, 0], [4, 0, 0])
    assert anchors.walk(2, start=[0, 4, 6]).iterations.tolist() == [3, 1, 1]


IDS = st.lists(st.integers(0, 2), min_size=1, max_size=14)


@given(
    st.lists(st.tuples(IDS, IDS, st.integers(0, 14)), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(0, 5),
    st.lists(st.integers(0, 6), max_size=3),
)
def test_every_walk_is_the_offline_walk_answer_by_answer(cases, gamma, fewer, lengths):
    answers, scripts, free = zip(*((a, s, min(f, len(a))) for a, s, f in cases), strict=True)
    anchors = anchors_of(answers, scripts, gamma, lengths, free)
    asked = max(gamma - fewer, 1)
    counts, visited, prefixes = anchors.walk(asked), anchors.visited(asked), anchors.prefix_counts(asked)
    for row, (answer, script, start) in enumerate(zip(answers, scripts, free, strict=True)):
        drafter = Scripted({0: script}, lengths)
        taken = walk(answer, drafter, toy_prompt(), asked, start=start)
        assert (counts.iterations[row], counts.emitted[row]) == (taken.iterations, taken.emitted)
        assert tuple(np.flatnonzero(visited[row])) == taken.anchors
        own = prefix_counts(answer, drafter, toy_prompt(), asked)
        assert (prefixes[0][row].tolist(), prefixes[1][row]) == (own.right.tolist(), own.anchors)


def test_tau_is_a_ratio_of_sums_with_its_interval():
    anchors = anchors_of([ANSWER, ANSWER[:4], ANSWER], [SCRIPT, SCRIPT, [0] * 8], 2)
    found = anchors.tau(2, sequences=["a", "b", "c"], seed=3)
    assert found == ratio_of_sums([7, 3, 7], [3, 1, 7], sequences=["a", "b", "c"], seed=3)


def test_shares_over_all_anchors_promise_more_than_a_walk_gives_on_repetitive_text():
    # A long stretch that is drafted right at every anchor, and a short one that is always wrong: the walk crosses the
    # first in two passes and steps through the second, so easy anchors weigh less in it.
    answer = list(range(20))
    script = [*answer[:13], *[99] * 7]
    anchors = anchors_of([answer], [script], 5)
    shares, walked = 1 + anchors.prefix_shares(5).sum(), anchors.tau(5, sequences=None).value
    assert walked == pytest.approx(19 / 9)
    assert shares == pytest.approx(1 + (12 + 11 + 10 + 9 + 8) / 19)
    assert shares > walked + 1
    assert 1 + anchors.prefix_shares(5, anchors.visited(5)).sum() == pytest.approx(walked)


@pytest.mark.parametrize("slack", [None, np.linspace(0, 1, 16, dtype=np.float32).reshape(2, 8)])
def test_anchors_come_back_from_disk_as_they_were(tmp_path, slack):
    anchors = anchors_of([ANSWER, ANSWER[:3]], [SCRIPT, SCRIPT], 3, free=[0, 2])
    anchors = Anchors(**{**vars(anchors), "slack": slack})
    back = Anchors.load(anchors.save(tmp_path / "new" / "anchors.npz"))
    assert (back.gamma, [f.name for f in (tmp_path / "new").iterdir()]) == (3, ["anchors.npz"])
    for name in ("right", "target_len", "free", "slack"):
        np.testing.assert_array_equal(getattr(back, name), getattr(anchors, name))
    assert (back.slack is None) == (slack is None)


def test_a_damaged_file_is_one_clear_error(tmp_path):
    path = anchors_of([ANSWER], [SCRIPT], 2).save(tmp_path / "a.npz")
    whole = path.read_bytes()
    np.savez(tmp_path / "other.npz", right=np.zeros((2, 2)))
    np.savez(tmp_path / "wrong.npz", right=np.full((1, 2), 9), target_len=[2], free=[0], gamma=2)
    np.savez(tmp_path / "shape.npz", right=np.zeros((1, 2)), target_len=[2], free=[0], gamma=[1, 2])
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    content = whole.index(b".npy") + 30
    (tmp_path / "flipped.npz").write_bytes(whole[:content] + bytes([whole[content] ^ 255]) + whole[content + 1 :])
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "pickled.npz").write_bytes(b"\x80\x04N.")
    for name in ("other", "wrong", "shape", "array", "cut", "flipped", "empty", "pickled"):
        with pytest.raises(UserError, match="is not a whole file of anchors") as caught:
            Anchors.load(tmp_path / f"{name}.npz")
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        Anchors.load(tmp_path / "none.npz")


@pytest.mark.parametrize("gamma", [0, 3])
def test_a_walk_needs_drafts_of_its_length(gamma):
    with pytest.raises(ValueError, match=r"gamma must be 1\.\.2"):
        anchors_of([ANSWER], [SCRIPT], 2).walk(gamma)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"right": np.array([[2, 1, -1]], np.int32)}, "right must be"),
        ({"right": np.array([[1, -1, -1]], np.int32)}, "right must be"),
        ({"right": np.array([[1, 1, 0]], np.int32)}, "right must be"),
        ({"gamma": 0}, "right must be"),
        ({"free": np.array([4], np.int32)}, "free must be"),
        ({"free": np.array([0, 0], np.int32)}, r"free \[n\]"),
        ({"slack": np.zeros((1, 2), np.float32)}, r"slack \[n, t\]"),
        ({"target_len": np.array([4], np.int32)}, r"target_len must be 0\.\.3"),
    ],
)
def test_anchors_that_contradict_themselves_are_refused(change, told):
    good = {"right": [[1, 0, -1]], "target_len": [3], "free": [0]}
    arrays = {name: np.array(value, np.int32) for name, value in good.items()}
    with pytest.raises(ValueError, match=told):
        Anchors(**{**arrays, "gamma": 1, **change})


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"drafted \[n, t, g\]"):
        right_lengths(np.zeros((1, 3, 2)), np.zeros((1, 4)), [3])
    with pytest.raises(ValueError, match="start must be one anchor"):
        anchors_of([ANSWER], [SCRIPT], 2).walk(2, start=[0, 0])
