"""Kernels compute what the plain forms compute: value, sums and every gradient. Interpreted on a CPU."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.adapters import fused_steps
from tests.adapters.fused_steps import LENGTH, WIDTH, computed, step_of, truth, use_kernels
from tests.adapters.small import noise
from xmsd_jax.adapters import fused_gelu, fused_norms
from xmsd_jax.adapters.attend import attend, attend_plain, is_fused, rows_are_fused
from xmsd_jax.adapters.blocks import Linear, gelu, unit_rows
from xmsd_jax.adapters.fused_attention import attend_fused
from xmsd_jax.adapters.fused_loss import Compared, norm_loss_fused
from xmsd_jax.adapters.noise import drop

KINDS = ["L1", "L2", "L3", "L4", "B1", "L5F"]  # L5's class is B1's but for the stream
RATES = [None, 0.3]
pytestmark = pytest.mark.usefixtures("quick_compile")


@cache
def plain(kind: str, rate: float | None, **more):
    """The plain step, of two rates by one program: without dropout it is that of rate 0."""
    return plain_program(kind, **more)(rate or 0.0)


plain_program = cache(step_of)


def assert_near(found, wanted, relative: float) -> None:
    """Each array within a share of its own largest number; ten times that for an alpha.

    The gradient of an alpha is a single sum of thousands of numbers of both signs, most of which cancel.
    """
    for name, value in wanted.slopes.items():
        atol = relative * abs(value).max() * (1 if value.ndim else 10)
        np.testing.assert_allclose(found.slopes[name], value, rtol=0, atol=atol, err_msg=name)
    np.testing.assert_allclose(found.value, wanted.value, rtol=relative)
    np.testing.assert_allclose(found.tops, wanted.tops, rtol=relative)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_by_kernels_is_the_plain_step(kind, rate, monkeypatch):
    wanted = plain(kind, rate)
    assert all(np.abs(slope).max() > 0 for slope in wanted.slopes.values())
    use_kernels(monkeypatch, any_dtype=True)
    assert_near(computed(kind, rate), wanted, 1e-5)


@pytest.mark.parametrize("kind", ["L1", "L2", "L3", "B1"])
def test_states_that_stay_in_the_split_give_the_same_bits(kind, monkeypatch):
    use_kernels(monkeypatch, any_dtype=True)
    taken, left = computed(kind, 0.3), computed(kind, 0.3, stored=True)
    np.testing.assert_array_equal(left.value, taken.value)
    for name, slope in taken.slopes.items():
        np.testing.assert_array_equal(left.slopes[name], slope, err_msg=name)


@pytest.mark.parametrize("kind", ["L3", "L5F"])
def test_half_precision_differs_by_rounding(kind, monkeypatch):
    wanted = plain(kind, 0.3)
    use_kernels(monkeypatch, any_dtype=False)
    found = computed(kind, 0.3, dtype=jnp.bfloat16)
    for name, value in wanted.slopes.items():
        # bfloat16 rounds by up to 2^-9; a gradient is made of some twenty rounded tensors.
        distance = np.linalg.norm(found.slopes[name] - value) / np.linalg.norm(value)
        assert distance < 20 * 2**-9, name
    np.testing.assert_allclose(found.value, wanted.value, rtol=2**-8)
    assert found.value != wanted.value


def test_next_goes_through_the_layers_kernels_and_the_plain_loss(monkeypatch):
    wanted = plain("B1", 0.3, loss="next")
    use_kernels(monkeypatch, any_dtype=True)
    assert_near(computed("B1", 0.3, loss="next"), wanted, 1e-5)


def test_kernels_are_for_half_precision_on_a_gpu_and_powers_of_two(monkeypatch):
    low = jnp.zeros((1, 50, 3 * WIDTH), jnp.bfloat16)
    assert not is_fused(low)
    monkeypatch.setattr("xmsd_jax.adapters.attend.BACKENDS", ("cpu",))
    assert is_fused(low)
    assert rows_are_fused(WIDTH, jnp.bfloat16)
    assert not rows_are_fused(WIDTH, jnp.float32)
    assert not rows_are_fused(96, jnp.bfloat16)
    assert not is_fused(low.astype(jnp.float32))
    assert not is_fused(low[..., : 3 * 64]), "heads of 8"
    assert not is_fused(jnp.zeros((1, 129, 3 * WIDTH), jnp.bfloat16)), "more positions than a block holds"


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5,), (3, 50)])
def test_few_rows_among_zeros_give_the_same_product(monkeypatch, shape):
    """Up to 4 rows are computed among 16; in bfloat16 on a GPU alone."""
    linear = Linear(WIDTH, 24, rngs=nnx.Rngs(0))
    x = normal(*shape, WIDTH, seed=8).astype(jnp.bfloat16)
    wanted = linear.product(x)
    padded = "pad" in str(jax.make_jaxpr(linear.product)(x))
    monkeypatch.setattr("xmsd_jax.adapters.attend.BACKENDS", ("cpu",))
    found = linear.product(x)
    assert not padded
    assert ("pad" in str(jax.make_jaxpr(linear.product)(x))) == (math.prod(shape) <= 4)
    assert "pad" not in str(jax.make_jaxpr(linear.product)(x.astype(jnp.float32)))
    assert found.shape == wanted.shape
    assert linear.product(x[:0]).shape == (0, *wanted.shape[1:])
    assert jnp.allclose(found.astype(jnp.float32), wanted.astype(jnp.float32), rtol=0.01, atol=0.02)


def normal(*shape: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


X, Y = (normal(3, LENGTH, WIDTH, seed=seed) for seed in (1, 2))
GAIN, SHIFT, BIAS = (normal(WIDTH, seed=seed) for seed in (3, 4, 5))
TABLE, WEIGHTS = normal(LENGTH, WIDTH, seed=6), normal(2, 3, LENGTH, WIDTH, seed=7)


def norm(x, gain, shift):
    return unit_rows(x) * gain + shift


def add_norm(x, y, bias, gain, shift, drawn):
    total = x + drop(y + bias, drawn)
    return total, norm(total, gain, shift)


def add_unit(x, y):
    return x + y, unit_rows(x + y)


def gelu_drop(y, bias, drawn):
    return drop(gelu(y + bias), drawn)


CASES = {
    "norm": (fused_norms.norm_fused, norm, (X, GAIN, SHIFT), ()),
    "norm with a table": (fused_norms.norm_fused, norm, (X, GAIN, TABLE), ()),
    "unit": (fused_norms.unit_fused, unit_rows, (X,), ()),
    "add_unit": (fused_norms.add_unit_fused, add_unit, (X, Y), ()),
    "add_norm": (fused_norms.add_norm_fused, add_norm, (X, Y, BIAS, GAIN, SHIFT), (None,)),
    "add_norm with dropout": (fused_norms.add_norm_fused, add_norm, (X, Y, BIAS, GAIN, SHIFT), (noise(0.3),)),
    "gelu_drop": (fused_gelu.gelu_drop_fused, gelu_drop, (5 * Y, BIAS), (None,)),
    "gelu_drop with dropout": (fused_gelu.gelu_drop_fused, gelu_drop, (Y, BIAS), (noise(0.3),)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_row_kernel_is_its_formula_with_the_gradient_of_every_input(case, monkeypatch):
    monkeypatch.setattr("xmsd_jax.adapters.row_kernels._cores", lambda: 5)  # 10 programs for 33 rows
    fused, formula, given, rest = CASES[case]

    def found(function):
        def value(given):
            outputs = jax.tree.leaves(function(*given, *rest))
            return sum((out * weight).sum() for out, weight in zip(outputs, WEIGHTS, strict=False)), outputs

        (_, outputs), slopes = jax.jit(jax.value_and_grad(value, has_aux=True))(given)
        return [np.asarray(x) for x in (*outputs, *slopes)]

    for one, other in zip(found(fused), found(formula), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * max(abs(other).max(), 1))


@pytest.mark.parametrize("far", [0.0, 10.0, 100.0])
def test_a_mean_far_from_zero_costs_a_norm_less_than_half_precision_does(far):
    """The kernels take the variance from sums of squares, of which the squared mean is taken off."""
    x = far + X  # of std 1
    np.testing.assert_allclose(fused_norms.unit_fused(x), unit_rows(x), rtol=0, atol=4 * 2**-9)  # of numbers up to 4


def test_the_kernels_drop_the_places_that_drop_drops(monkeypatch):
    monkeypatch.setattr("xmsd_jax.adapters.row_kernels._cores", lambda: 5)
    drawn, far = noise(0.3, seed=8).at(2), jnp.full(WIDTH, 50.0)
    by_rows = fused_gelu.gelu_drop_fused(jnp.zeros_like(X), far, drawn)
    np.testing.assert_array_equal(by_rows > 0, drop(jnp.ones_like(X), drawn) > 0)
    total, _ = fused_norms.add_norm_fused(jnp.zeros_like(X), jnp.zeros_like(X), far, GAIN, SHIFT, drawn)
    np.testing.assert_array_equal(total, by_rows)
    # Attention looks at all places alike, and a value's number says where it comes from.
    qkv = jnp.zeros((3, LENGTH, 3, 8, WIDTH // 8)).at[:, :, 2, :, :LENGTH].set(jnp.eye(LENGTH)[:, None])
    out = attend_fused(
        qkv.reshape(3, LENGTH, -1), jnp.zeros(3 * WIDTH), jnp.ones((3, LENGTH), bool), causal=False, noise=drawn
    )
    looked = jnp.moveaxis(out.reshape(3, LENGTH, 8, -1)[..., :LENGTH], 2, 1) > 0
    np.testing.assert_array_equal(looked, drop(jnp.ones((3, 8, LENGTH, LENGTH)), drawn) > 0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rate", RATES)
def test_attention_by_a_kernel_is_the_plain_one(causal, rate):
    qkv, bias = normal(3, LENGTH, 3 * WIDTH, seed=9), normal(3 * WIDTH, seed=10)
    real = jnp.arange(LENGTH) < jnp.asarray([LENGTH, 4, 1])[:, None]
    drawn = None if rate is None else noise(rate)

    def found(function):
        def value(qkv, bias):
            out = function(qkv, bias)
            return jnp.where(real[..., None], out * WEIGHTS[0], 0).sum(), out

        (_, out), slopes = jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(qkv, bias)
        return [np.where(real[..., None], out, 0), *map(np.asarray, slopes)]

    kernel = found(lambda qkv, bias: attend_fused(qkv, bias, real, causal, drawn))
    formula = found(lambda qkv, bias: attend_plain(qkv + bias, real, causal, drawn))
    np.testing.assert_array_equal(
        attend(qkv, bias, real, causal=causal, noise=drawn), attend_plain(qkv + bias, real, causal, drawn)
    )
    for one, other in zip(kernel, formula, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=3e-6 * max(abs(other).max(), 1))


@pytest.mark.parametrize("function", [fused_norms.norm_fused, fused_norms.unit_fused])
def test_no_gradient_is_written_for_states_of_a_store(function):
    """They are inputs, and XLA cannot leave an output out of a kernel."""
    arguments = (GAIN, SHIFT) if function is fused_norms.norm_fused else ()

    def written(wanted: bool) -> int:
        def value(share, x):
            y = function(x * share if wanted else x, *(a * share for a in arguments))
            return (y * share).sum()

        text = str(jax.make_jaxpr(jax.grad(value))(jnp.float32(1), X))
        return text.count(f"f32[{3 * LENGTH},{WIDTH}]")

    assert written(False) < written(True)


def test_masked_positions_of_the_losses_get_no_gradient(monkeypatch):
    given, compared = truth(jnp.float32)
    use_kernels(monkeypatch, any_dtype=True)
    lengths = fused_steps.LENGTHS
    assert [int(mask.sum()) for mask in compared.same_mask] == lengths.tolist()
    assert not np.asarray(given.drafter[2]).any()

    def value(x):
        masks = jnp.stack([compared.same_mask, compared.next_mask]).astype(jnp.float32)
        against = Compared(compared.target, masks, jnp.asarray([1.0, 0.0]))
        return norm_loss_fused(x, x, None, GAIN, SHIFT, None, against, cosine=0.5)[0]

    slope = np.asarray(jax.jit(jax.grad(value))(normal(4, LENGTH, WIDTH, seed=1)))
    np.testing.assert_array_equal(slope.any(-1), compared.same_mask)


def test_dropout_of_a_plain_sum_is_refused():
    against = Compared(X, jnp.ones((2, 3, LENGTH)), jnp.ones(2))
    with pytest.raises(ValueError, match="give alpha"):
        norm_loss_fused(X, Y, None, GAIN, SHIFT, noise(), against, cosine=0.5)
