"""What a config says of products is what a session multiplies by."""

import pytest
import torch
from torch.nn import functional

from tests.torch_bridge.fake_pair import fake_clip, fake_target
from torch_bridge import static_memory, step_speed
from torch_bridge.fused_projections import fuse
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.pipeline.engine import EngineConfig


@pytest.mark.parametrize("products", ["fused", "library"])
def test_few_rows_are_multiplied_as_the_config_says(products, monkeypatch):
    """The layers would allow products of our own: which a CPU's do not."""
    monkeypatch.setattr(static_memory, "takes_few", lambda layer: True)
    vlm = fake_target()
    session = EngineConfig(products=products).session(vlm, 20)
    session.prefill(QUESTIONS[0], session.encode(fake_clip(0)))
    assert session._held()._ours is (products == "fused")


@pytest.mark.parametrize("own", [True, False])
def test_products_are_timed_as_they_are_asked_for(own, monkeypatch):
    vlm, taken = fake_target(dtype=torch.bfloat16), []
    fuse(vlm.language_model)
    monkeypatch.setattr(step_speed, "takes_few", lambda layer: True)
    monkeypatch.setattr(step_speed, "linear_few", lambda x, w: taken.append(w.shape) or functional.linear(x, w))
    step_speed.product_seconds(vlm, 3, repeats=1, own=own)
    assert len(taken) == (2 * 4 * len(vlm.language_model.layers) if own else 0), "once to warm up"
