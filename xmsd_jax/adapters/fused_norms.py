"""LayerNorm, residual with dropout and LayerNorm, and GELU with dropout as row kernels: a pass forward, one backward.

The backward pass computes mean and deviation again: the row is read anyway.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.experimental import pallas as pl
from jaxtyping import Array

from xmsd_jax.adapters.noise import Noise
from xmsd_jax.adapters.row_kernels import (
    each_row,
    keep_row,
    norm_slope,
    normalised,
    row_call,
    row_noise,
    write,
)

F32 = jnp.float32
_SQRT_HALF = math.sqrt(0.5)
_DENSITY = 1 / math.sqrt(2 * math.pi)


def norm_fused(x: Array, gain: Array, shift: Array) -> Array:
    """`LN(x) * gain + shift` over the last axis, in the dtype of x [b, t, d]; `shift` is [d], or [t, d]."""
    return _norm(x.reshape(-1, x.shape[-1]), gain, jnp.atleast_2d(shift)).reshape(x.shape)


def add_norm_fused(
    x: Array, y: Array, bias: Array, gain: Array, shift: Array, noise: Noise | None
) -> tuple[Array, Array]:
    """`s = x + drop(y + bias)` and `LN(s) * gain + shift`, of [b, t, d]."""
    length = None if noise is None else x.shape[1]
    flat = (a.reshape(-1, x.shape[-1]) for a in (x, y))
    both: Any = _add_norm(*flat, bias, gain, shift, row_noise(noise), length)
    return both[0].reshape(x.shape), both[1].reshape(x.shape)


def unit_fused(x: Array) -> Array:
    """`(x - mean) / std` over the last axis."""
    return _unit(x.reshape(-1, x.shape[-1])).reshape(x.shape)


def add_unit_fused(x: Array, y: Array) -> tuple[Array, Array]:
    """`s = x + y`, and `(s - mean) / std`."""
    total, unit = _add_unit(*(a.reshape(-1, x.shape[-1]) for a in (x, y)))
    return total.reshape(x.shape), unit.reshape(x.shape)


def gelu_drop_fused(y: Array, bias: Array, noise: Noise | None) -> Array:
    """`drop(GELU(y + bias))` of [b, t, d], with the exact erf."""
    length = None if noise is None else y.shape[1]
    dropped: Any = _gelu_drop(y.reshape(-1, y.shape[-1]), bias, row_noise(noise), length)
    return dropped.reshape(y.shape)


@jax.custom_vjp
def _norm(x: Array, gain: Array, shift: Array) -> Array:
    return row_call(_norm_kernel, x, [("rows", x.dtype)], name="norm")(x, gain, shift)[0]


def _norm_rule(x: Any, gain: Any, shift: Any) -> tuple[Array, Any]:
    # The states of a store need no gradient: then none is written.
    return _norm(x.value, gain.value, shift.value), (x.value, gain.value, shift.value, x.perturbed)


def _norm_back(saved: Any, slope: Any) -> tuple[Array, Array, Array]:
    x, gain, shift, wanted = saved
    slope = jnp.zeros_like(x) if isinstance(slope, SymbolicZero) else slope
    outputs = [("sums", F32), ("sums", F32), *([("rows", x.dtype)] if wanted else [])]
    call = row_call(_norm_back_kernel, x, outputs, name="norm_back", period=len(shift))
    gains, sums, *towards = call(x, gain, slope)
    shifts = sums.reshape(-1, *shift.shape).sum(0)
    return (towards[0] if wanted else jnp.zeros_like(x)), gains.sum(0), shifts


_norm.defvjp(_norm_rule, _norm_back, symbolic_zeros=True)


def _norm_kernel(count: int, x: Any, gain: Any, shift: Any, out: Any) -> None:
    scale, period = gain[:], shift.shape[0]

    def body(row: Array, rows: Any, carry: int) -> int:
        write(out, row, normalised(rows[0])[0] * scale + shift[row % period, :])
        return carry

    each_row(count, lambda row: (x[row, :],), body, 0)


def _norm_back_kernel(count: int, x: Any, gain: Any, slope: Any, gains: Any, shifts: Any, *towards: Any) -> None:
    scale = gain[:]

    def body(row: Array, rows: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        value, above = rows
        unit, inverse = normalised(value)
        if towards:
            write(towards[0], row, norm_slope(above * scale, unit, inverse))
        return carry[0] + above * unit, carry[1] + above

    blank = jnp.zeros(x.shape[1], F32)
    _store_sums(each_row(count, lambda row: (x[row, :], slope[row, :]), body, (blank, blank)), (gains, shifts))


@jax.custom_vjp
def _unit(x: Array) -> Array:
    return row_call(_unit_kernel, x, [("rows", x.dtype)], name="unit")(x)[0]


def _unit_rule(x: Any) -> tuple[Array, Any]:
    return _unit(x.value), (x.value, x.perturbed)


def _unit_back(saved: Any, slope: Any) -> tuple[Array]:
    x, wanted = saved
    if not wanted or isinstance(slope, SymbolicZero):
        return (jnp.zeros_like(x),)
    return (row_call(_unit_back_kernel, x, [("rows", x.dtype)], name="unit_back")(x, slope)[0],)


_unit.defvjp(_unit_rule, _unit_back, symbolic_zeros=True)


def _unit_kernel(count: int, x: Any, out: Any) -> None:
    def body(row: Array, rows: Any, carry: int) -> int:
        write(out, row, normalised(rows[0])[0])
        return carry

    each_row(count, lambda row: (x[row, :],), body, 0)


def _unit_back_kernel(count: int, x: Any, slope: Any, towards: Any) -> None:
    def body(row: Array, rows: Any, carry: int) -> int:
        write(towards, row, norm_slope(rows[1], *normalised(rows[0])))
        return carry

    each_row(count, lambda row: (x[row, :], slope[row, :]), body, 0)


@jax.custom_vjp
def _add_unit(x: Array, y: Array) -> tuple[Array, Array]:
    total, unit = row_call(_add_unit_kernel, x, [("rows", x.dtype)] * 2, name="add_unit")(x, y)
    return total, unit


def _add_unit_rule(x: Array, y: Array) -> tuple[tuple[Array, Array], Array]:
    total, unit = _add_unit(x, y)
    return (total, unit), total


def _add_unit_back(total: Array, slopes: tuple[Array, Array]) -> tuple[Array, Array]:
    towards = row_call(_add_unit_back_kernel, total, [("rows", total.dtype)], name="add_unit_back")(total, *slopes)[0]
    return towards, towards


_add_unit.defvjp(_add_unit_rule, _add_unit_back)


def _add_unit_kernel(count: int, x: Any, y: Any, total: Any, out: Any) -> None:
    def body(row: Array, rows: Any, carry: int) -> int:
        write(out, row, normalised(write(total, row, rows[0] + rows[1]))[0])
        return carry

    each_row(count, lambda row: (x[row, :], y[row, :]), body, 0)


def _add_unit_back_kernel(count: int, total: Any, beside: Any, slope: Any, towards: Any) -> None:
    def body(row: Array, rows: Any, carry: int) -> int:
        write(towards, row, rows[1] + norm_slope(rows[2], *normalised(rows[0])))
        return carry

    each_row(count, lambda row: (total[row, :], beside[row, :], slope[row, :]), body, 0)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _add_norm(x, y, bias, gain, shift, noise, length) -> Any:
    outputs = [("rows", x.dtype), ("rows", x.dtype)]
    call = row_call(partial(_add_norm_kernel, length), x, outputs, name="add_norm")
    total, normed = call(x, y, bias, gain, shift, *noise)
    return total, normed


def _add_norm_rule(x, y, bias, gain, shift, noise, length) -> Any:
    both: Any = _add_norm(x, y, bias, gain, shift, noise, length)
    return both, (both[0], gain, noise)


def _add_norm_back(length: int | None, saved: Any, slopes: tuple[Array, Array]) -> Any:
    total, gain, noise = saved
    outputs = [("sums", F32)] * 3 + [("rows", total.dtype)] * (1 if length is None else 2)
    call = row_call(partial(_add_norm_back_kernel, length), total, outputs, name="add_norm_back")
    biases, gains, shifts, *towards = call(total, gain, *slopes, *noise)
    return towards[0], towards[-1], biases.sum(0), gains.sum(0), shifts.sum(0), None


_add_norm.defvjp(_add_norm_rule, _add_norm_back)


def _add_norm_kernel(length, count, x, y, bias, gain, shift, rate, seeds, total, out) -> None:
    scale, offset, beside, width = gain[:], shift[:], bias[:], x.shape[1]

    def body(row: Array, rows: Any, carry: int) -> int:
        value = rows[0] + (rows[1] + beside) * keep_row(rate, seeds, length, row, width)
        write(out, row, normalised(write(total, row, value))[0] * scale + offset)
        return carry

    each_row(count, lambda row: (x[row, :], y[row, :]), body, 0)


def _add_norm_back_kernel(
    length, count, total, gain, beside, slope, rate, seeds, biases, gains, shifts, *towards
) -> Any:
    scale, width = gain[:], total.shape[1]

    def body(row: Array, rows: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        value, outer, above = rows
        unit, inverse = normalised(value)
        own = outer + norm_slope(above * scale, unit, inverse)
        write(towards[0], row, own)
        if length is not None:
            own *= keep_row(rate, seeds, length, row, width)
            write(towards[1], row, own)
        return carry[0] + own, carry[1] + above * unit, carry[2] + above

    found = each_row(
        count, lambda row: (total[row, :], beside[row, :], slope[row, :]), body, (jnp.zeros(width, F32),) * 3
    )
    _store_sums(found, (biases, gains, shifts))


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
    _store_sums(found, (biases,))


def _normal_cdf(x: Array) -> tuple[Array, Array]:
    """The normal distribution up to x within 1e-7, and `exp(-x^2 / 2)`: erf after Abramowitz & Stegun 7.1.26.

    Pallas has no erf for Triton.
    """
    bell = jnp.exp(-0.5 * x * x)
    t = 1.0 / (1.0 + (0.3275911 * _SQRT_HALF) * jnp.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * series * bell
    return jnp.where(x < 0, tail, 1.0 - tail), bell


def _store_sums(found: tuple[Array, ...], refs: tuple[Any, ...]) -> None:
    program = pl.program_id(0)
    for value, ref in zip(found, refs, strict=True):
        ref[program, :] = value
