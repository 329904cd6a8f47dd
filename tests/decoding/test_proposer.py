"""A live adapter drafts what the offline rollout drafts at the same anchor, in whatever order it is asked."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.adapters.small import (
    FACTS,
    FIRST,
    HEAD_ROWS,
    MODES,
    VOCABULARY,
    WIDTH,
    StateHead,
    drafts,
    head,
    lively,
    streams,
)
from tests.decoding.toy import CLIP
from xmsd_jax.adapters.eagle import TargetEagle
from xmsd_jax.adapters.interface import POSITIONS, Sizes
from xmsd_jax.adapters.rollout import NO_DRAFT, first_drafts
from xmsd_jax.config import ConfigError
from xmsd_jax.decoding.acceptance import softmax
from xmsd_jax.decoding.ports import Context, Draft, Drafter, DrafterLane, Prompt, Window
from xmsd_jax.decoding.proposer import HostWindow, PrefillDrafter, RolloutDrafter

ROWS, LENGTH, GAMMA = 3, 14, 4
ANCHORS = range(LENGTH - 1)
OWN_LEN = np.array([LENGTH, 6, 1])
PROMPTS = [Prompt(clip=CLIP, question="what moves?") for _ in range(ROWS)]
IDS = np.random.default_rng(0).integers(0, VOCABULARY, LENGTH).astype(np.int32)
EVERY = pytest.mark.parametrize(("name", "mode"), MODES)


@pytest.fixture(scope="module", autouse=True)
def quick_compile() -> Iterator[None]:
    """Compile without most optimisations: nearly all of the time of these tests is XLA's."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@cache
def stored() -> tuple[np.ndarray, np.ndarray]:
    """States of drafter and target, [ROWS, LENGTH, WIDTH]. All three prompts have the same ids and other states."""
    given = streams(ROWS, LENGTH)
    return np.array(given.drafter), np.array(given.target)


class StoredLane:
    """Both kinds of drafter states from memory; what was asked for is kept."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def begin(self, prompt: Prompt) -> None:
        self.row = PROMPTS.index(prompt)

    def own(self, count: int) -> np.ndarray:
        self.asked.append(count)
        return stored()[0][self.row, : min(count, OWN_LEN[self.row])]

    def synced(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        np.testing.assert_array_equal(ids, IDS[: len(ids)])
        self.asked.append(len(ids))
        return stored()[0][self.row, : len(ids) + 1]

    def take_spans(self) -> list:
        return []


class DirtyWindow(HostWindow):
    """As memory that others write, too: NaN wherever no state was asked for."""

    def __call__(self, blocks: Sequence[np.ndarray], start: int, stop: int) -> jax.Array:
        at = jnp.arange(self.rows)[:, None]
        return jnp.where((at >= start) & (at < stop), super().__call__(blocks, start, stop), jnp.nan)


def windows(rows: int) -> Window:
    return DirtyWindow(rows, WIDTH)


def rollout_drafter(name: str, mode: str, **changes) -> RolloutDrafter:
    settings: dict = {"gamma": GAMMA, "max_new_tokens": LENGTH, "windows": windows, "mode": mode, "lane": StoredLane()}
    of = changes.pop("of", None) or head()
    return RolloutDrafter(lively(name), of, name=name, **{**settings, **changes})


@cache
def usual(name: str, mode: str) -> RolloutDrafter:
    """One for all tests that leave its lane alone: a draft depends on nothing but its context."""
    return rollout_drafter(name, mode)


def context(row: int, anchor: int, *, states: int | None = None) -> Context:
    """Anchor t of a prompt; h[0..t] in blocks, as the loop collects them."""
    hidden = stored()[1][row, : anchor + 1 if states is None else states]
    return Context(prompt=PROMPTS[row], ids=IDS[: anchor + 1], hidden=tuple(np.split(hidden, [1, 2, 6])))


def propose(drafter: RolloutDrafter, row: int, anchor: int, gamma: int = GAMMA) -> list[int]:
    if drafter.lane is not None:
        drafter.lane.begin(PROMPTS[row])
    draft = drafter.propose(context(row, anchor), gamma)
    assert isinstance(draft, Draft)
    assert draft.ids.dtype == np.int32
    return draft.ids.tolist()


@cache
def offline(name: str, mode: str) -> np.ndarray:
    return drafts(name, mode, streams(ROWS, LENGTH), own_len=OWN_LEN, gamma=GAMMA).ids


def wanted(name: str, mode: str, row: int, anchor: int) -> list[int]:
    ids = offline(name, mode)[row, anchor]
    return ids[ids != NO_DRAFT].tolist()


def test_it_is_a_drafter_and_its_source_a_lane():
    assert isinstance(rollout_drafter("L5F", "own"), Drafter)
    assert isinstance(StoredLane(), DrafterLane)


def test_the_stored_answers_are_worth_testing_on():
    """Drafts differ between prompts, between modes, and from anchor to anchor."""
    for name, mode in MODES:
        ids = offline(name, mode)[:, :-1]
        assert len(np.unique(ids[0], axis=0)) > LENGTH // 2
        assert (ids[0] != ids[1]).mean() > 0.5
    assert (offline("L5F", "own")[0] != offline("L5F", "synced")[0]).any()


@EVERY
def test_a_growing_answer_is_drafted_as_offline_at_every_anchor(name, mode):
    drafter = usual(name, mode)
    for row in range(ROWS):
        assert [propose(drafter, row, t) for t in ANCHORS] == [wanted(name, mode, row, t) for t in ANCHORS]


@EVERY
def test_a_draft_depends_on_nothing_but_its_context(name, mode):
    """Steps of a walk, the same anchor again, back to earlier ones, another prompt with the same ids in between."""
    drafter, draws = usual(name, mode), np.random.default_rng(1)
    order = [(0, t) for t in (0, 3, 8, 9, 9, 4, 5, 12, 0)] + [(1, 1), (0, 2), (1, 2), (2, 3), (1, 4)]
    order += [(int(draws.integers(ROWS)), int(draws.integers(LENGTH - 1))) for _ in range(20)]
    for row, anchor in order:
        assert propose(drafter, row, anchor) == wanted(name, mode, row, anchor), (row, anchor)


def test_another_text_about_the_same_prompt_starts_anew():
    drafter, other = usual("B1", "own"), (IDS + 1) % VOCABULARY
    assert propose(drafter, 0, 5) == wanted("B1", "own", 0, 5)
    context = Context(prompt=PROMPTS[0], ids=other[:9], hidden=(stored()[1][1, :9],))
    assert drafter.propose(context, GAMMA).ids.tolist() == wanted("B1", "own", 1, 8)


@EVERY
@pytest.mark.parametrize("first_rows", [1, 8, LENGTH])
def test_a_first_context_of_many_tokens_is_read_in_portions(name, mode, first_rows):
    drafter = rollout_drafter(name, mode, first_rows=first_rows)
    for anchor in (12, 7, GAMMA + 1, GAMMA, GAMMA - 1, 12):  # a shorter context starts anew, the last one goes on
        assert propose(drafter, 0, anchor) == wanted(name, mode, 0, anchor)


@EVERY
def test_fewer_ids_are_the_first_of_more(name, mode):
    drafter = usual(name, mode)
    for anchor, gamma in [(0, 1), (2, 3), (5, 2)]:
        assert propose(drafter, 0, anchor, gamma) == wanted(name, mode, 0, anchor)[:gamma]


@EVERY
def test_a_drafter_may_be_compiled_for_a_single_id(name, mode):
    drafter = rollout_drafter(name, mode, gamma=1)
    assert [propose(drafter, 0, t, 1) for t in ANCHORS] == [wanted(name, mode, 0, t)[:1] for t in ANCHORS]


@EVERY
def test_in_phase_1_there_is_no_draft_and_nothing_is_read(name, mode):
    drafter = rollout_drafter(name, mode)
    assert not len(drafter.propose(Context(prompt=PROMPTS[0], ids=IDS[:0]), GAMMA).ids)
    assert drafter.lane is None or not drafter.lane.asked


@pytest.mark.parametrize("name", ["L5", "L5F"])
def test_in_mode_own_drafts_end_with_the_drafters_answer(name):
    drafter = usual(name, "own")
    for row in range(ROWS):
        lengths = [len(propose(drafter, row, t)) for t in ANCHORS]
        assert lengths == [min(max(OWN_LEN[row] - t, 0), GAMMA) for t in ANCHORS]


@pytest.mark.parametrize(("mode", "reach"), [("own", GAMMA), ("synced", 1)])
def test_the_lane_is_asked_for_what_the_mode_may_see_and_no_more(mode, reach):
    """own(t + gamma) gives g[0..t+gamma-1]; synced(y_0..y_t) gives s[0..t+1]."""
    drafter = rollout_drafter("L5F", mode)
    for anchor in (0, 2, 7):
        propose(drafter, 0, anchor)
    assert drafter.lane.asked == [t + reach for t in (0, 2, 7)]


def test_a_kind_that_does_not_read_the_drafter_has_no_lane():
    assert rollout_drafter("B1", "synced").lane is None


def test_one_program_serves_a_whole_answer():
    traced = []

    class Counted(TargetEagle):
        def keep(self, given, positions):
            traced.append(positions.shape)
            return super().keep(given, positions)

    adapter = Counted(Sizes(width=WIDTH), nnx.Rngs(0))
    drafter = RolloutDrafter(adapter, head(), name="counted", gamma=GAMMA, max_new_tokens=LENGTH, windows=windows)
    traced.clear()  # shapes are asked for once, at the beginning
    for row, anchor in [(0, 0), (0, 2), (0, 7), (0, 8), (0, 12), (1, 11), (2, 1)]:
        propose(drafter, row, anchor)
    assert traced == [(1, GAMMA + 1)]


class Lent:
    """`Window` over what lies on the device already, as torch's memory does: the states of one prompt."""

    def __init__(self, states: np.ndarray) -> None:
        self.states = jax.device_put(states[None], jax.devices()[0])

    def __call__(self, blocks: Sequence[np.ndarray], start: int, stop: int) -> jax.Array:
        return self.states


def lent_windows() -> Callable[[int], Window]:
    """The windows of a drafter by the rows that it asks for: N for the target's states, N + 1 for the drafter's."""
    drafter, target = stored()
    return lambda rows: Lent(target[0] if rows == LENGTH else drafter[0])


@pytest.mark.parametrize(
    ("name", "mode", "temperature"),
    [("B1", "own", 0.0), ("B1", "own", 1.0), ("L5", "own", 1.0), ("L5F", "own", 0.0), ("L5F", "synced", 0.0)],
)
def test_nothing_is_sent_to_the_device_and_only_int32_ids_come_from_it(name, mode, temperature):
    fetched = []

    def fetch(array):
        fetched.append((array.dtype, array.shape))
        return jax.device_get(array)

    drafter = rollout_drafter(name, mode, windows=lent_windows(), temperature=temperature, fetch=fetch)
    propose(drafter, 0, 0)  # compiles, and sends the key of the answer
    fetched.clear()
    with jax.transfer_guard("disallow_explicit"):
        drafts = [propose(drafter, 0, anchor) for anchor in (3, 4, 12)]
    assert fetched == [(jnp.int32, (GAMMA,))] * 3
    if not temperature:
        assert drafts == [wanted(name, mode, 0, anchor) for anchor in (3, 4, 12)]


def test_states_that_come_from_the_host_would_be_seen():
    """The guard of the test above is no empty word on a CPU: what it does not see there is the way back."""
    drafter = usual("B1", "own")
    propose(drafter, 0, 0)
    with jax.transfer_guard("disallow_explicit"), pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        propose(drafter, 0, 3)


@pytest.mark.parametrize(("name", "mode"), [("B1", "own"), ("L5F", "synced")])
def test_kept_keys_and_values_are_updated_in_place(name, mode):
    drafter = usual(name, mode)
    propose(drafter, 0, 0)
    before = jax.tree.leaves(drafter._memory)
    addresses = [leaf.unsafe_buffer_pointer() for leaf in before]
    propose(drafter, 0, 3)
    assert all(leaf.is_deleted() for leaf in before)
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(drafter._memory)] == addresses


@pytest.mark.parametrize(("name", "mode"), [("B1", "own"), ("L5F", "own"), ("L5", "synced")])
def test_a_draft_at_a_temperature_is_drawn_from_the_q_that_it_gives(name, mode):
    """q is the softmax of the offline rollout's logits; ids are drawn from it, as a function of seed and context."""
    drafter, row = rollout_drafter(name, mode, temperature=0.7, seed=5), 0
    rolled = drafts(name, mode, streams(ROWS, LENGTH), own_len=OWN_LEN, gamma=GAMMA, to=StateHead(head())).margins
    drawn = []
    for anchor in (1, 4, 9):
        if drafter.lane is not None:
            drafter.lane.begin(PROMPTS[row])
        draft = drafter.propose(context(row, anchor), GAMMA)
        assert isinstance(draft.q, jax.Array)
        wanted = softmax(head().logits(jnp.asarray(rolled[row, anchor])), 0.7)
        np.testing.assert_allclose(draft.q, wanted, atol=1e-5)
        assert (np.take_along_axis(np.asarray(draft.q), draft.ids[:, None], 1) > 0).all()
        drawn.append(draft.ids.tolist())
    assert [propose(drafter, row, anchor) for anchor in (9, 1, 4)] == [drawn[2], *drawn[:2]]
    drafter.reseed(6)
    again = [propose(drafter, row, anchor) for anchor in (1, 4, 9)]
    drafter.reseed(5)
    assert again != [propose(drafter, row, anchor) for anchor in (1, 4, 9)] == drawn


def test_fewer_ids_at_a_temperature_have_as_many_rows_of_q():
    draft = rollout_drafter("B1", "own", temperature=1.0).propose(context(0, 3), 2)
    assert (draft.ids.shape, draft.q.shape) == ((2,), (2, HEAD_ROWS))
    assert not np.asarray(draft.q)[:, VOCABULARY:].any()


@pytest.mark.parametrize("temperature", [-1.0, float("inf"), float("nan")])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ConfigError, match=f"temperature must be 0 .* got {temperature}"):
        rollout_drafter("B1", "own", temperature=temperature)


def test_the_head_is_used_where_it_lies():
    given = head()
    assert rollout_drafter("B1", "own", of=given)._head.weight.unsafe_buffer_pointer() == (
        given.weight.unsafe_buffer_pointer()
    )


def test_an_adapter_of_offset_0_is_not_rolled_out():
    with pytest.raises(ConfigError, match="L2: is no adapter of offset 1"):
        rollout_drafter("L2", "own")


@pytest.mark.parametrize("name", ["L5", "L5F"])
def test_a_kind_that_reads_the_drafter_needs_a_lane(name):
    with pytest.raises(ConfigError, match=f"{name}: reads the drafter's states, but no lane"):
        rollout_drafter(name, "synced", lane=None)


def test_more_positions_than_the_adapter_has_are_refused():
    rollout_drafter("B1", "synced", max_new_tokens=POSITIONS - GAMMA)
    with pytest.raises(ConfigError, match=f"max_new_tokens: {POSITIONS - GAMMA + 1} and gamma {GAMMA}"):
        rollout_drafter("B1", "synced", max_new_tokens=POSITIONS - GAMMA + 1)


def test_more_ids_than_compiled_are_refused():
    with pytest.raises(ValueError, match="drafter 'B1' was compiled for 4 ids, was asked for 5"):
        propose(rollout_drafter("B1", "synced"), 0, 0, 5)


def test_a_longer_answer_than_it_was_made_for_is_refused():
    """Its keys and values would be written over those of earlier tokens."""
    drafter = rollout_drafter("B1", "synced", max_new_tokens=6)
    assert propose(drafter, 0, 5) == wanted("B1", "synced", 0, 5)
    with pytest.raises(ValueError, match="drafter 'B1' keeps 6 tokens of an answer, was given 7"):
        propose(drafter, 0, 6)


@pytest.mark.parametrize(("name", "mode"), [(n, m) for n, m in MODES if FACTS[n].inputs != "drafter"])
def test_missing_states_are_refused_and_leave_no_trace(name, mode):
    drafter = usual(name, mode)
    assert propose(drafter, 0, 5) == wanted(name, mode, 0, 5)
    with pytest.raises(ValueError, match="brings a state for each of 12 tokens, got 7 states"):
        drafter.propose(context(1, 11, states=7), GAMMA)
    assert propose(drafter, 0, 6) == wanted(name, mode, 0, 6)


def prefill_drafter(name: str, count: int = 5) -> PrefillDrafter:
    return PrefillDrafter(lively(name), head(), name=name, lane=StoredLane(), draft_len=count, windows=windows)


def first(drafter: PrefillDrafter, row: int, gamma: int) -> list[int]:
    drafter.lane.begin(PROMPTS[row])
    return drafter.propose(Context(prompt=PROMPTS[row], ids=IDS[:0]), gamma).ids.tolist()


@pytest.mark.parametrize("name", FIRST)
def test_phase_1_drafts_are_the_first_drafts_of_exactly_so_many_states(name):
    drafter, count = prefill_drafter(name), 5
    ids = first_drafts(lively(name), head(), jnp.asarray(stored()[0][:, :count]), jnp.asarray(OWN_LEN, jnp.int32)).ids
    for row in (0, 1, 2, 0):
        assert first(drafter, row, count) == np.asarray(ids)[row, : OWN_LEN[row]].tolist()
        assert first(drafter, row, 2) == np.asarray(ids)[row, : min(OWN_LEN[row], 2)].tolist()
    assert set(drafter.lane.asked) == {count}


def test_in_phase_2_a_phase_1_drafter_drafts_nothing_and_reads_nothing():
    drafter = prefill_drafter("L4")
    assert isinstance(drafter, Drafter)
    assert not len(drafter.propose(context(0, 3), GAMMA).ids)
    assert not drafter.lane.asked


def test_an_adapter_of_offset_1_does_not_draft_in_phase_1():
    with pytest.raises(ConfigError, match=r"L5: predicts the next state \(offset 1\)"):
        prefill_drafter("L5")


def test_phase_1_refuses_more_ids_than_compiled():
    with pytest.raises(ValueError, match="drafter 'L2' was compiled for 5 ids, was asked for 6"):
        first(prefill_drafter("L2"), 0, 6)


def test_a_host_window_refuses_more_rows_than_it_has():
    with pytest.raises(ValueError, match=r"a window of 3 rows .* each of 6 tokens, got 6 states: .* make it larger"):
        HostWindow(3, WIDTH)([stored()[1][0, :6]], 2, 6)
