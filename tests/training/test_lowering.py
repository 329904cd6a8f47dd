"""The whole train step at the study's width becomes a program for a CUDA GPU, on a machine without one.

By shapes alone: nothing is computed. What Triton itself makes of a kernel is seen on a GPU only.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.experimental import pallas as pl

from xmsd_jax.adapters import attend
from xmsd_jax.adapters.kinds import KINDS, outline
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.training.engine import Engine
from xmsd_jax.training.losses import Objective
from xmsd_jax.training.recipe import Recipe
from xmsd_jax.training.state import Hyper, Skeleton, begin
from xmsd_jax.training.step import Resident, make_steps

WIDTH, LENGTH, BATCH, ROWS = 4096, 50, 64, 128
ATTENTION = {"forward_attention", "backward_attention"}
LAYER = {"norm", "norm_back", "add_norm", "add_norm_back", "gelu_drop", "gelu_drop_back", "blend_loss", *ATTENTION}
KERNELS = {
    "L1": {"unit", "gelu_drop", "gelu_drop_back", "norm_loss"},
    "L2": {"unit", "add_unit", "add_unit_back", "gelu_drop", "gelu_drop_back", "norm_loss"},
    "L3": {"norm", "norm_back", "gelu_drop", "gelu_drop_back", "norm_loss"},
    **dict.fromkeys(("L4", "L5", "B1", "L5F"), LAYER),
}


def like(*shape: int, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def arguments(kind: str) -> tuple[Skeleton, tuple]:
    graphdef, params = nnx.split(outline(kind, WIDTH), nnx.Param)
    named = {".".join(map(str, path)): (path, leaf.shape) for path, leaf in nnx.to_flat_state(params)}
    skeleton = Skeleton(graphdef=graphdef, paths={name: path for name, (path, _) in named.items()})
    shapes = {name: like(*shape, dtype=jnp.float32) for name, (_, shape) in named.items()}
    state, hyper = jax.eval_shape(begin, shapes), jax.eval_shape(lambda: Hyper(*map(jnp.asarray, Hyper.of(Recipe()))))
    masks = [like(ROWS, LENGTH, dtype=jnp.bool_)] * 2
    states = [like(ROWS, LENGTH, WIDTH)] * 2
    data = Resident(*states, like(ROWS, dtype=jnp.int32), like(ROWS, LENGTH, dtype=jnp.int32), *masks)
    head = TokenHead(like(64, WIDTH), like(dtype=jnp.int32))
    return skeleton, (state, data, head, like(4, BATCH, dtype=jnp.int32), like(dtype=jnp.float32), hyper)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_step_is_lowered_for_cuda(kind, monkeypatch):
    names = []

    def on_a_gpu(*args, **options):
        names.append(options["name"])
        return whole(*args, **{**options, "interpret": False})

    whole = pl.pallas_call
    monkeypatch.setattr(pl, "pallas_call", on_a_gpu)
    monkeypatch.setattr(attend, "BACKENDS", ("gpu", "cpu"))
    skeleton, given = arguments(kind)
    objective = Objective(name="study", offset=KINDS[kind].facts.offset)
    steps = make_steps(skeleton, objective, Recipe(), Engine(devices=1).mesh(), compute=jnp.bfloat16)
    text = steps.trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    assert set(names) == KERNELS[kind]
    assert len(re.findall(r"custom_call @\S*triton", text)) >= len(KERNELS[kind])
