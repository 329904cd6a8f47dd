"""The small pair in NF4 from clips to certified live decoding; what was made in another format is refused."""

import dataclasses

import numpy as np
import pytest

from torch_bridge.pair import load_pair
from torch_bridge.quantize import dense_weight
from xmsd_jax import config as configs
from xmsd_jax.config import UserError
from xmsd_jax.data.store import Store
from xmsd_jax.pipeline import benchmark, clips, evaluate, extract
from xmsd_jax.pipeline.benchmark import BenchmarkConfig
from xmsd_jax.pipeline.clips import ClipsConfig
from xmsd_jax.pipeline.evaluate import EvaluateConfig
from xmsd_jax.pipeline.extract import ExtractConfig
from xmsd_jax.pipeline.pair import PairConfig, pair_options
from xmsd_jax.runs import read_results

pytestmark = pytest.mark.slow
PAIR = {"threads": 1, "dtype": "bfloat16", "quantisation": {"format": "nf4"}}
QUESTIONS, TOKENS = (0, 1, 2), 12
ROWS = [
    {"drafter": "n-gram", "prefill_mode": "ride"},
    {"prefill": "identity(drafter, 0)", "prefill_mode": "wait"},
    {"drafter": "identity(target, 1)"},
]
NAMES = {"n-gram (ride)", "identity(drafter, 0)", "identity(target, 1)"}


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """Folder of three runs: clips, `x` extracted, `e` evaluated; and the config of the benchmark."""
    root = tmp_path_factory.mktemp("nf4")
    world = {"sequences": {"train": 1, "test": 2}, "clips_per_sequence": 1}
    clips.run(configs.load(ClipsConfig, {"world": world}), root)
    extract.run(extraction(root), root / "x")
    evaluation = {"store": str(root / "x" / "store"), "gamma": 3, "prefill_draft_len": 4}
    evaluate.run(configs.load(EvaluateConfig, evaluation), root / "e")
    asked = {"name": "held-out street scenes", "split": "test", "per_clip": len(QUESTIONS), "answers": len(QUESTIONS)}
    settings = {
        "clips": str(root / "clips"),
        "store": str(root / "x" / "store"),
        "evaluation": str(root / "e" / "evaluation"),
        "pair": PAIR,
        "max_new_tokens": TOKENS,
        "live": {"clips": [asked], "rows": ROWS, "gamma": 3, "prefill_draft_len": 4, "repeats": 1, "timed": 1},
    }
    return root, configs.load(BenchmarkConfig, settings)


def extraction(root) -> ExtractConfig:
    settings = {"clips": str(root / "clips"), "pair": PAIR, "questions": list(QUESTIONS), "max_new_tokens": TOKENS,
                "batch": 2, "shard_rows": 6}  # fmt: skip
    return configs.load(ExtractConfig, settings)


def test_nf4_answers_are_stored_with_their_policy_evaluated_and_decoded_without_loss(road, capsys):
    root, config = road
    rows = benchmark.run(config, root / "b")  # raises RunFailed for an answer that is not the target's own
    assert capsys.readouterr().out.count(": nf4, double, compute bfloat16, kept: lm_head") == 2
    assert {r.row: r.value for r in rows if r.metric == "answers_compared"} == dict.fromkeys(NAMES, 3)
    assert {r.value for r in rows if r.metric in ("divergences", "walk_differs")} == {0}
    assert {(r.row, r.n) for r in rows if r.metric == "walk_differs"} == {(row, 3) for row in NAMES}
    (policy,) = {r.settings["quantisation"] for r in rows if r.metric == "speedup"}
    assert policy == config.pair.quantisation.describe()

    judged = read_results(root / "e")[0]
    told = {r.row: r.value for r in judged if r.metric == "top1" and r.settings["offset"] == 0}
    assert told["identity(target, 1)"] == pytest.approx(1.0, abs=0.05)


def test_the_store_is_that_of_the_quantised_pair(road):
    root, config = road
    target, drafter = load_pair(**pair_options(config.pair))
    for split, answers in (("train", 3), ("test", 6)):
        store = Store.open(root / "x" / "store" / split)
        manifest = store.manifest
        assert manifest.rows == answers
        assert manifest.quantisation == {"target": target.quantisation, "drafter": drafter.quantisation}
        assert manifest.quantisation["target"].startswith("nf4, double, compute bfloat16, kept: lm_head, video_tower")
        assert manifest.revisions == {"target": target.fingerprint, "drafter": drafter.fingerprint}
        head = np.asarray(store.head(), np.float32)
        np.testing.assert_array_equal(head, dense_weight(target.lm_head).float().numpy())
        states, ids = np.asarray(store.read("target_hidden"), np.float32), store.read("target_ids")
        inside = np.arange(TOKENS) < store.read("target_len")[:, None]
        assert (((states @ head.T).argmax(-1) == ids) | ~inside).mean() > 0.97  # but for ties of bfloat16 logits


def test_a_store_of_another_format_is_neither_continued_nor_used(road, tmp_path):
    root, config = road
    plain = dataclasses.replace(config.pair, quantisation=PairConfig().quantisation)
    with pytest.raises(UserError, match=r"other settings.*--fresh"):
        extract.run(dataclasses.replace(extraction(root), pair=plain), root / "x")
    single = dataclasses.replace(config.pair.quantisation, double=False)
    for pair in (plain, dataclasses.replace(config.pair, quantisation=single)):
        with pytest.raises(UserError, match="another target's"):
            benchmark.run(dataclasses.replace(config, pair=pair), tmp_path / "b")
