"""A pair's config and its loader say the same things."""

from inspect import signature

from torch_bridge.pair import load_pair
from xmsd_jax.data.quantisation import Quantisation
from xmsd_jax.pipeline.pair import PairConfig, pair_options


def test_the_config_gives_the_loader_every_argument_that_it_takes():
    assert set(pair_options(PairConfig())) == set(signature(load_pair).parameters)


def test_both_models_follow_the_one_policy():
    policy = Quantisation(format="nf4", double=False, compute="float32")
    for model in load_pair(**pair_options(PairConfig(quantisation=policy))):
        assert model.quantisation.startswith("nf4, single, compute float32, kept: lm_head, vi")
        assert model.footprint.parts["linears"].scales > 0
    for model in load_pair(**pair_options(PairConfig())):
        assert model.quantisation == "none"
        assert model.footprint.parts["linears"].scales == 0
