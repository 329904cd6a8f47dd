"""The small pair with adapters, live: the target's own ids, and the walk that is counted from stored states."""

from collections.abc import Mapping
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from tests.adapters.small import lively_value
from torch_bridge.extraction import Settings, extract_split
from torch_bridge.pair import load_pair
from xmsd_jax.adapters.files import assign, named_parameters
from xmsd_jax.adapters.interface import Adapter
from xmsd_jax.adapters.kinds import CONTROLS, make
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.data.batches import Pairs, read_pairs
from xmsd_jax.data.clip_folder import ClipFolderWriter
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.store import Store
from xmsd_jax.data.world import WorldConfig, world_clips
from xmsd_jax.decoding.anchors import adapter_anchors, adapter_free
from xmsd_jax.decoding.ladder import references
from xmsd_jax.decoding.ports import Prompt
from xmsd_jax.decoding.trace import Trace
from xmsd_jax.pipeline.expected import Expected, agreement, expect
from xmsd_jax.pipeline.judged import Judged
from xmsd_jax.pipeline.live_pair import Lengths, LivePair
from xmsd_jax.pipeline.pair import PairConfig, pair_options
from xmsd_jax.pipeline.rows import PHASE_1, DraftRow
from xmsd_jax.pipeline.trained import Trained, token_head
from xmsd_jax.training.engine import Engine
from xmsd_jax.training.losses import Objective
from xmsd_jax.training.recipe import Recipe
from xmsd_jax.training.sources import as_source
from xmsd_jax.training.state import Hyper, Skeleton, begin
from xmsd_jax.training.step import batches, make_steps, placed

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

WIDTH, COUNT, EARLY, GAMMA = 256, 64, 12, 5
WORLD = WorldConfig(sequences={"test": 4}, clips_per_sequence=1, seed=11)
ASKED = (0, 4, 7)
READS = {
    "identity(drafter, 0)": "index", "identity(target, 1)": None, "L1": "index", "L2": "index", "L3": "index",
    "L4": "index", "L5 (own)": "index", "L5 (synced)": "synced", "B1": None, "L5F (own)": "index",
    "L5F (synced)": "synced",
}  # fmt: skip
ROWS = [DraftRow(prefill=name, prefill_mode=mode) for name in PHASE_1 for mode in ("ride", "wait")]
ROWS += [DraftRow(drafter=name) for name in READS if name not in PHASE_1]
ROWS += [DraftRow(prefill="L2", drafter="L5F (synced)", prefill_mode="ride")]
ROWS += [DraftRow(prefill="L2", drafter="L5F (own)", prefill_mode="wait")]
ROWS += [DraftRow(drafter="L5F (own)", gamma=2)]
EVERY = pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}, {row.prefill_mode}, {row.gamma or GAMMA}")
STEPS, RATES = 150, (5e-3, 2e-3)


class Known:
    """The twelve answers: as prompts, as the target says them alone, and as the store holds them."""

    def __init__(self, root) -> None:
        writer = ClipFolderWriter(root / "clips", {"source": "small world"})
        for clip in world_clips(WORLD, "test"):
            writer.add("test", clip)
        folder = writer.close()
        target, drafter = load_pair(**pair_options(PairConfig(threads=1)))
        settings = Settings(questions=ASKED, max_new_tokens=COUNT, batch=2)
        self.store = Store.open(extract_split(root / "store", folder, "test", target, drafter, settings))
        self.prompts = [
            Prompt(clip=clip, question=QUESTIONS[index], question_index=index)
            for clip in map(folder.load, folder.entries("test"))
            for index in ASKED
        ]
        self.head: TokenHead = token_head(self.store)

    def pairs(self, one: Trained) -> Pairs:
        return read_pairs(self.store, inputs=one.adapter.facts.inputs, pairing=one.pairing)


class Live:
    """A set of adapters over the loaded pair, and what the store says of each."""

    def __init__(self, known: Known, adapters: Mapping[str, Trained]) -> None:
        self.known = known
        lengths = Lengths(gamma=GAMMA, prefill_draft_len=EARLY, max_new_tokens=COUNT)
        self.pair = LivePair.load(PairConfig(threads=1), lengths, text={}, adapters=adapters)
        self.pair.share(True)
        self.alone = references(self.pair.shared, known.prompts, COUNT)
        self.judged = {name: self._judge(one) for name, one in adapters.items()}

    def _judge(self, one: Trained) -> Judged:
        pairs, head = self.known.pairs(one), self.known.head
        if one.early:
            return Judged(prefix=adapter_free(one.adapter, head, pairs, draft_len=EARLY))
        return Judged(anchors=adapter_anchors(one.adapter, head, pairs, mode=one.mode, gamma=GAMMA))

    def expected(self, row: DraftRow) -> Expected:
        store = self.known.store
        lengths = {f"{which}_len": store.read(f"{which}_len") for which in ("target", "drafter")}
        return expect(row, row.gamma or GAMMA, self.judged, **lengths, known=np.ones(store.rows, bool))

    def traces(self, row: DraftRow) -> list[Trace]:
        rung = self.pair.rung(row, self.pair.shared)
        return [rung.answer(prompt) for prompt in self.known.prompts]


def trained(name: str, adapter: Adapter) -> Trained:
    return Trained(name=name, adapter=adapter, pairing=READS[name])


def shaken(name: str) -> Adapter:
    """Random everywhere: a fresh adapter of most kinds is nearly the identity."""
    if name in CONTROLS:
        return CONTROLS[name]()
    adapter, rng = make(name.split()[0], WIDTH, seed=3), np.random.default_rng(3)
    given = {path: lively_value(path, value.shape, rng) for path, value in named_parameters(adapter).items()}
    assign(adapter, given, "test")
    return adapter


def beginnings(pairs: Pairs) -> Pairs:
    """What an adapter of phase 1 is given and asked for."""
    cut = ("drafter", "target", "target_ids", "same_mask", "next_mask")
    lengths = {f"{which}_len": np.minimum(getattr(pairs, f"{which}_len"), EARLY) for which in ("drafter", "target")}
    return replace(pairs, **{name: getattr(pairs, name)[:, :EARLY] for name in cut}, **lengths)


def bent(known: Known, name: str) -> Adapter:
    """Fitted on the very answers that it will draft: its drafts are right for long stretches."""
    if name in CONTROLS:
        return CONTROLS[name]()
    adapter = make(name.split()[0], WIDTH, seed=3)
    pairs, offset = known.pairs(trained(name, adapter)), adapter.facts.offset
    if not offset:
        pairs = beginnings(pairs)
    recipe = Recipe(dropout=0.0, loss="next" if offset else "study", token_weight=1.0)
    skeleton, params = Skeleton.split(adapter)
    objective = Objective(name=recipe.loss, offset=offset, token_weight=recipe.token_weight)
    mesh = Engine(devices=1).mesh()
    steps = make_steps(skeleton, objective, recipe, mesh, compute=jnp.float32)
    ((data, order),) = as_source(pairs, mesh).epoch(np.repeat(batches(np.arange(len(pairs)), len(pairs)), STEPS, 0))
    head, rate, hyper = placed((known.head, np.float32(RATES[offset]), Hyper.of(recipe)), mesh)
    state, _ = steps(placed(begin(params), mesh), data, head, order, rate, hyper)
    return skeleton.adapter(state.params)


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> Known:
    return Known(tmp_path_factory.mktemp("small_pair"))


@pytest.fixture(scope="module")
def random(known) -> Live:
    return Live(known, {name: trained(name, shaken(name)) for name in READS})


@pytest.fixture(scope="module")
def fitted(known) -> Live:
    return Live(known, {name: trained(name, bent(known, name)) for name in READS})


def assert_expected_walk(live: Live, row: DraftRow) -> list[Trace]:
    """The target's own ids, and the expected walk, answer by answer."""
    expected, traces = live.expected(row), live.traces(row)
    for at, (trace, alone) in enumerate(zip(traces, live.alone, strict=True)):
        assert trace.ids == alone.ids, at
        assert agreement(expected, at, trace, dtype="float32") == "equal", at
    assert [trace.n_free for trace in traces] == list(expected.free)
    assert [len(trace.iterations) for trace in traces] == list(expected.iterations)
    return traces


def test_the_stored_answers_are_those_of_the_target_alone(random, known):
    assert len(known.prompts) == 12
    for row, trace in enumerate(random.alone):
        assert tuple(known.store.token_ids("target", row)) == trace.ids


@EVERY
def test_random_adapters_take_the_expected_walk(random, row):
    assert_expected_walk(random, row)


@EVERY
def test_fitted_adapters_take_the_expected_walk(fitted, row):
    assert_expected_walk(fitted, row)


def test_the_fitted_adapters_are_often_right(fitted):
    """Else the walks above would be those of plain decoding."""
    for name, one in fitted.judged.items():
        if one.anchors is not None and name not in CONTROLS:
            counts = one.anchors.walk(GAMMA)
            assert counts.emitted.sum() / counts.iterations.sum() > 1.5, name
    for row in (row for row in ROWS if row.first and row.first not in CONTROLS):
        assert fitted.expected(row).free.mean() > 0.5, row.name


def test_a_whole_answer_without_sharing_is_the_same(fitted):
    """Vision and prefill of both models computed for it, and not left over from another row."""
    row, expected = ROWS[-2], fitted.expected(ROWS[-2])
    fitted.pair.share(False)
    for at in (0, 5):
        trace = fitted.pair.rung(row).answer(fitted.known.prompts[at])
        assert trace.ids == fitted.alone[at].ids
        assert agreement(expected, at, trace, dtype="float32") == "equal"
    fitted.pair.share(True)


def test_another_walk_is_not_agreed_to(fitted):
    row = DraftRow(drafter="B1")
    expected, trace = fitted.expected(row), fitted.traces(row)[0]
    other = replace(trace.iterations[0], accepted=trace.iterations[0].accepted + 1)
    assert agreement(expected, 0, replace(trace, iterations=(other, *trace.iterations[1:])), dtype="float32") != "equal"
    assert agreement(expected, 0, replace(trace, iterations=trace.iterations[:-1]), dtype="float32") == "differs"
