"""Sizes at the study's width, sizes at small widths, and the values that adapters start from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.adapters.small import COUNTS, WIDTH, every, lively, noise, normal, streams
from xmsd_jax.adapters.files import named_parameters, named_shapes
from xmsd_jax.adapters.interface import Streams
from xmsd_jax.adapters.kinds import KINDS, make, outline, parameters
from xmsd_jax.adapters.noise import drop
from xmsd_jax.config import ConfigError

WIDE = 256  # wide enough for the spread of random starts to be measured
ATTENTION = ["L4", "L5", "B1", "L5F"]


@pytest.mark.parametrize("kind", COUNTS)
def test_parameter_counts_at_4096_are_those_of_the_study(kind):
    assert parameters(kind, 4096) == COUNTS[kind]


def test_the_study_trained_l3_with_three_blocks():
    assert parameters("L3", 4096, blocks=3) == 25_188_355


def test_inner_sizes_follow_the_width():
    assert named_shapes(outline("L1", 64))["blocks.0.down.kernel"] == (64, 64 // 16)
    assert named_shapes(outline("L3", 64))["blocks.1.down.kernel"] == (64, 64 // 4)
    shapes = named_shapes(outline("L5", 64))
    assert shapes["layer.ffn_in.kernel"] == (64, 64 // 2)
    assert shapes["pos_embed"] == (512, 64)
    query, kept = lively("L5").layer.project(normal(1, 2, WIDTH))
    assert query.shape == kept.key.shape == (1, 2, 8, WIDTH // 8)


@pytest.mark.parametrize("width", [0, 8, 24, -16])
def test_a_width_that_cannot_be_cut_is_refused(width):
    with pytest.raises(ConfigError, match=f"multiple of 16.*got {width}"):
        make("L1", width)


@pytest.mark.parametrize(("kind", "blocks"), [("L1", 0), ("L4", 1), ("B1", 2)])
def test_blocks_are_refused_where_they_mean_nothing(kind, blocks):
    with pytest.raises(ConfigError, match=f"blocks: {kind} takes .* got {blocks}"):
        make(kind, WIDTH, blocks=blocks)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_float32_parameters_and_nothing_else(kind):
    _, params, rest = nnx.split(make(kind, WIDTH), nnx.Param, ...)
    assert jax.tree.leaves(rest) == []
    assert {(leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(params)} == {(jnp.dtype("float32"), False)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_the_start(kind):
    one, same, other = (named_parameters(make(kind, WIDTH, seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", COUNTS)
def test_alphas_start_at_a_tenth_and_norms_as_norms(kind):
    found = named_parameters(make(kind, WIDTH))
    alphas = [value for name, value in found.items() if name.endswith("alpha")]
    assert len(alphas) == {"L2": 3, "L3": 2}.get(kind, 1)
    np.testing.assert_allclose(alphas, 0.1, rtol=1e-6)
    for name, value in found.items():
        if "norm." in name:
            np.testing.assert_array_equal(value, np.full(value.shape, float(name.endswith("scale"))))


@pytest.mark.parametrize(("kind", "gain"), [("L1", 1.0), ("L2", 1.0), ("L3", 2**0.5)])
def test_bottlenecks_start_kaiming_normal_and_zero(kind, gain):
    found = named_parameters(make(kind, WIDE))
    for name, value in found.items():
        if ".down." in name:
            assert float(value.std()) == pytest.approx(gain / WIDE**0.5, rel=0.04)
            assert abs(value).max() > 2.5 * gain / WIDE**0.5  # not cut off: normal, not uniform
        if ".up." in name:
            np.testing.assert_array_equal(value, np.zeros(value.shape))


@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_starts_as_pytorch_starts_it(kind):
    found = named_parameters(make(kind, WIDE))
    assert_uniform(found["layer.qkv.kernel"], (6 / (WIDE + 3 * WIDE)) ** 0.5)  # Xavier over the packed matrix
    assert_uniform(found["layer.out.kernel"], WIDE**-0.5)
    for name in ("layer.qkv.bias", "layer.out.bias", "output.proj.bias"):
        np.testing.assert_array_equal(found[name], np.zeros(found[name].shape))
    np.testing.assert_array_equal(found["output.proj.kernel"], np.eye(WIDE))
    assert_uniform(found["layer.ffn_in.kernel"], WIDE**-0.5)
    assert_uniform(found["layer.ffn_in.bias"], WIDE**-0.5, rel=0.15)
    assert_uniform(found["layer.ffn_out.kernel"], (WIDE / 2) ** -0.5)
    assert_uniform(found["layer.ffn_out.bias"], (WIDE / 2) ** -0.5, rel=0.15)


def assert_uniform(value: jax.Array, bound: float, rel: float = 0.02) -> None:
    assert float(abs(value).max()) <= bound * (1 + 1e-6)
    assert float(value.std()) == pytest.approx(bound / 3**0.5, rel=rel)
    assert abs(float(value.mean())) < 0.15 * bound


def test_fusion_starts_xavier_and_the_gate_as_pytorchs_linear():
    found = named_parameters(make("L5F", WIDE))
    assert_uniform(found["fusion.kernel"], (6 / (3 * WIDE)) ** 0.5)
    np.testing.assert_array_equal(found["fusion.bias"], np.zeros(WIDE))
    assert_uniform(found["gate.kernel"], (2 * WIDE) ** -0.5)
    assert_uniform(found["gate.bias"], (2 * WIDE) ** -0.5, rel=0.15)


@pytest.mark.parametrize("kind", ["L5", "B1", "L5F"])
def test_positions_start_with_std_a_fiftieth(kind):
    assert float(named_parameters(make(kind, WIDE))["pos_embed"].std()) == pytest.approx(0.02, rel=0.02)


def normed(x: jax.Array) -> jax.Array:
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize("kind", ["L1", "L2", "L3"])
def test_bottlenecks_start_as_a_norm_not_as_the_identity(kind):
    given = Streams(drafter=3.0 + 2.0 * normal(1, 4, WIDTH))
    out = make(kind, WIDTH)(given, every(1, 4))
    np.testing.assert_allclose(out, normed(given.drafter), atol=1e-5)
    assert float(abs(out - given.drafter).mean()) > 1


@pytest.mark.parametrize("kind", ATTENTION)
def test_the_output_starts_a_tenth_of_the_way_to_the_normed_layer(kind):
    adapter, given = make(kind, WIDTH), streams()
    if kind == "L4":
        x, hidden = given.drafter, given.drafter
    else:
        x, hidden = adapter.stem(given, None)
        x = x + adapter.pos_embed[...][:10]
    left = adapter.layer(x, every(), None, causal=kind != "L4")
    wanted = 0.9 * hidden + 0.1 * normed(left.x + left.y + left.bias)
    np.testing.assert_allclose(adapter(given, every()), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_needs_a_rate_and_a_seed(kind):
    adapter, given = lively(kind), streams()
    call = jax.jit(lambda noise: adapter(given, every(), noise=noise))
    plain, dropped = call(None), call(noise(seed=1))
    np.testing.assert_allclose(plain, call(noise(0.0)), atol=1e-6)  # two programs
    np.testing.assert_array_equal(dropped, call(noise(seed=1)))
    for other in (plain, call(noise(seed=2)), call(noise(0.25, seed=1))):
        assert float(abs(dropped - other).max()) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_of_an_answer_depends_on_its_own_seed_alone(kind):
    adapter, given, whole = lively(kind), streams(), noise(seed=1)
    call = jax.jit(lambda streams, mask, noise: adapter(streams, mask, noise=noise))
    part = call(jax.tree.map(lambda x: x[1:2], given), every(1), whole._replace(seeds=whole.seeds[1:2]))
    np.testing.assert_allclose(part[0], call(given, every(), whole)[1], atol=1e-5)


def test_every_block_drops_its_own_places():
    adapter, given, whole = lively("L2"), streams(), noise(seed=3)
    x = given.drafter
    for number, block in enumerate(adapter.blocks):
        x = x + block.inner(normed(x), whole.at(number))
    np.testing.assert_allclose(adapter(given, every(), noise=whole), adapter.final_norm(x), atol=1e-5)


def test_every_part_of_a_layer_drops_its_own_places():
    layer, x, whole = lively("L4").layer, streams().drafter, noise(seed=3)
    weights, inner, outer = (whole.at(site) for site in range(3))
    query, kept = layer.project(x)
    scores = jnp.einsum("bihe,bjhe->bhij", query, kept.key) / (WIDTH / 8) ** 0.5
    attended = jnp.einsum("bhij,bjhe->bihe", drop(jax.nn.softmax(scores), weights), kept.value)
    x = x + layer.out(attended.reshape(x.shape))
    narrow = jax.nn.gelu(layer.ffn_in(layer.ffn_norm(x)), approximate=False)
    wanted = x + drop(layer.ffn_out(drop(narrow, inner)), outer)
    left = layer(streams().drafter, every(), whole, causal=False)
    np.testing.assert_allclose(left.x + drop(left.y + left.bias, left.noise), wanted, atol=1e-5)


def test_more_positions_than_embeddings_are_refused():
    with pytest.raises(ValueError, match="at most 512 positions, got 513"):
        lively("B1")(streams(1, 513), every(1, 513))
