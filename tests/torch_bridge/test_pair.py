"""A pair's config and its loader say the same things."""

from inspect import signature

import pytest
import torch

from torch_bridge.pair import load_pair
from xmsd_jax.config import ConfigError
from xmsd_jax.data.quantisation import Quantisation
from xmsd_jax.pipeline.pair import PairConfig, pair_options


def test_the_config_gives_the_loader_every_argument_that_it_takes():
    own = {"drafter_device"}  # of extraction alone, which gives it beside the pair's
    assert set(pair_options(PairConfig())) | own == set(signature(load_pair).parameters)


@pytest.mark.parametrize(
    ("device", "beside", "said"),
    [
        ("cuda:2", None, r"pair\.device: cuda:2: torch finds 2 GPU\(s\), from cuda:0 on"),
        ("cuda:0", "cuda:5", r"drafter_device: cuda:5: torch finds 2 GPU\(s\)"),
    ],
)
def test_a_gpu_beyond_those_that_are_there_is_said_before_weights_are_read(monkeypatch, device, beside, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=said):
        load_pair(**pair_options(PairConfig(device=device)), drafter_device=beside)


def test_a_drafter_on_a_gpu_where_there_is_none_is_called_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^drafter_device: cuda:1: torch finds no GPU; set drafter_device to cpu"):
        load_pair(**pair_options(PairConfig()), drafter_device="cuda:1")


def test_both_models_follow_the_one_policy():
    policy = Quantisation(format="nf4", double=False, compute="float32")
    for model in load_pair(**pair_options(PairConfig(quantisation=policy))):
        assert model.quantisation.startswith("nf4, single, compute float32, kept: lm_head, vi")
        assert model.footprint.parts["linears"].scales > 0
    for model in load_pair(**pair_options(PairConfig())):
        assert model.quantisation == "none"
        assert model.footprint.parts["linears"].scales == 0
