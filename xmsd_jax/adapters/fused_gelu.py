"""GELU with dropout as a row kernel: a pass forward, one backward."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from xmsd_jax.adapters.noise import Noise
from xmsd_jax.adapters.row_kernels import each_row, flat, keep_row, row_call, row_noise, store_sums, write

F32 = jnp.float32
_SQRT_HALF = math.sqrt(0.5)
_DENSITY = 1 / math.sqrt(2 * math.pi)


def gelu_drop_fused(y: Array, bias: Array, noise: Noise | None) -> Array:
    """`drop(GELU(y + bias))` of [b, t, d], with the exact erf."""
    length = None if noise is None else y.shape[1]
    dropped: Any = _gelu_drop(flat(y), bias, row_noise(noise), length)
    return dropped.reshape(y.shape)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _gelu_drop(y, bias, noise, length) -> Any:
    call = row_call(partial(_gelu_drop_kernel, length), y, [("rows", y.dtype)], name="gelu_drop")
    return call(y, bias, *noise)[0]


def _gelu_drop_rule(y, bias, noise, length) -> Any:
    return _gelu_drop(y, bias, noise, length), (y, bias, noise)


def _gelu_drop_back(length, saved, slope) -> Any:
    y, bias, noise = saved
    outputs = [("sums", F32), ("rows", y.dtype)]
    kernel = partial(_gelu_drop_back_kernel, length)
    biases, towards = row_call(kernel, y, outputs, name="gelu_drop_back")(y, bias, slope, *noise)
    return towards, biases.sum(0), None


_gelu_drop.defvjp(_gelu_drop_rule, _gelu_drop_back)


def _gelu_drop_kernel(length, count, y, bias, rate, seeds, out) -> None:
    beside, width = bias[:], y.shape[1]

    def body(row: Array, rows: Any, carry: int) -> int:
        value = rows[0] + beside
        write(out, row, value * _normal_cdf(value)[0] * keep_row(rate, seeds, length, row, width))
        return carry

    each_row(count, lambda row: (y[row, :],), body, 0)


def _gelu_drop_back_kernel(length, count, y, bias, slope, rate, seeds, biases, towards) -> None:
    beside, width = bias[:], y.shape[1]

    def body(row: Array, rows: Any, carry: tuple[Array]) -> tuple[Array]:
        value = rows[0] + beside
        share, bell = _normal_cdf(value)
        steep = share + value * _DENSITY * bell
        own = rows[1] * keep_row(rate, seeds, length, row, width) * steep
        write(towards, row, own)
        return (carry[0] + own,)

    found = each_row(count, lambda row: (y[row, :], slope[row, :]), body, (jnp.zeros(width, F32),))
    store_sums(found, (biases,))


def _normal_cdf(x: Array) -> tuple[Array, Array]:
    """The normal distribution up to x within 1e-7, and `exp(-x^2 / 2)`: erf after Abramowitz & Stegun 7.1.26.

    Pallas has no erf for Triton.
    """
    bell = jnp.exp(-0.5 * x * x)
    t = 1.0 / (1.0 + (0.3275911 * _SQRT_HALF) * jnp.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * series * bell
    return jnp.where(x < 0, tail, 1.0 - tail), bell
