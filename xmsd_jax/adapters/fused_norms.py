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
    read,
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
    total, normed = _add_norm(*flat, bias, gain, shift, row_noise(noise), length)
    return total.reshape(x.shape), normed.reshape(x.shape)


def gelu_drop_fused(y: Array, bias: Array, noise: Noise | None) -> Array:
    """`drop(GELU(y + bias))` of [b, t, d], with the exact erf."""
    length = None if noise is None else y.shape[1]
    return _gelu_drop(y.reshape(-1, y.shape[-1]), bias, row_noise(noise), length).reshape(y.shape)


@jax.custom_vjp
def _norm(x: Array, gain: Array, shift: Array) -> Array:
    return row_call(_norm_kernel, x, [("rows", x.dtype)], name="norm")(x, gain, shift)[0]


def _norm_rule(x: Any, gain: Any, shift: Any) -> tuple[Array, Any]:
    # The states of a store need no gradient: then none is written.
    return _norm(x.value, gain.value, shift.value), (x.value, gain.value, shift.value, x.perturbed)


def _norm_back(saved: Any, slope: Any) -> tuple[Array, Array, Array]:
    x, gain, shift, wanted = saved
    slope = jnp.zeros(slope.shape, slope.dtype) if isinstance(slope, SymbolicZero) else slope
    outputs = [("sums", F32), ("sums", F32), *([("rows", x.dtype)] if wanted else [])]
    gains, sums, *towards = row_call(_norm_back_kernel, x, outputs, name="norm_back")(
        x, gain, slope
    )
    if len(shift) == 1:
        shifts = sums.sum(0, keepdims=True)
    else:
        shifts = slope.reshape(-1, *shift.shape).astype(F32).sum(0)
    return (towards[0] if wanted else jnp.zeros_like(x)), gains.sum(0), shifts


_norm.defvjp(_norm_rule, _norm_back, symbolic_zeros=True)


def _norm_kernel(rows: int, x: Any, gain: Any, shift: Any, out: Any) -> None:
    scale, period = gain[:], shift.shape[0]

    def body(row: Array, carry: int) -> int:
        write(out, row, normalised(read(x, row))[0] * scale + shift[row % period, :])
        return carry

    each_row(rows, body, 0)


def _norm_back_kernel(rows: int, x: Any, gain: Any, slope: Any, gains: Any, shifts: Any, *towards: Any) -> None:
    scale = gain[:]

    def body(row: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        unit, inverse = normalised(read(x, row))
        above = read(slope, row)
        if towards:
            write(towards[0], row, norm_slope(above * scale, unit, inverse))
        return carry[0] + above * unit, carry[1] + above

    blank = jnp.zeros(x.shape[1], F32)
    _store_sums(each_row(rows, body, (blank, blank)), (gains, shifts))


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _add_norm(x, y, bias, gain, shift, noise, length):  # noqa: ANN001, ANN202
    outputs = [("rows", x.dtype), ("rows", x.dtype)]
    call = row_call(partial(_add_norm_kernel, length), x, outputs, name="add_norm")
    total, normed = call(x, y, bias, gain, shift, *noise)
    return total, normed


def _add_norm_rule(x, y, bias, gain, shift, noise, length):  # noqa: ANN001, ANN202
    total, normed = _add_norm(x, y, bias, gain, shift, noise, length)
    return (total, normed), (total, gain, noise)


def _add_norm_back(length: int | None, saved: Any, slopes: tuple[Array, Array]) -> Any:
    total, gain, noise = saved
    outputs = [("sums", F32)] * 3 + [("rows", total.dtype)] * (1 if length is None else 2)
    call = row_call(partial(_add_norm_back_kernel, length), total, outputs, name="add_norm_back")
    biases, gains, shifts, *towards = call(total, gain, *slopes, *noise)
    return towards[0], towards[-1], biases.sum(0), gains.sum(0), shifts.sum(0), None


_add_norm.defvjp(_add_norm_rule, _add_norm_back)


def _add_norm_kernel(length, rows, x, y, bias, gain, shift, rate, seeds, total, out) -> None:  # noqa: ANN001
    scale, offset, beside, width = gain[:], shift[:], bias[:], x.shape[1]

    def body(row: Array, carry: int) -> int:
        value = read(x, row) + (read(y, row) + beside) * keep_row(rate, seeds, length, row, width)
        write(out, row, normalised(write(total, row, value))[0] * scale + offset)
        return carry

    each_row(rows, body, 0)


def _add_norm_back_kernel(length, rows, total, gain, beside, slope, rate, seeds, biases, gains, shifts, *towards):  # noqa: ANN001, ANN202
    scale, width = gain[:], total.shape[1]

    def body(row: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        unit, inverse = normalised(read(total, row))
        above = read(slope, row)
        own = read(beside, row) + norm_slope(above * scale, unit, inverse)
        write(towards[0], row, own)
        if length is not None:
            own *= keep_row(rate, seeds, length, row, width)
            write(towards[1], row, own)
        return carry[0] + own, carry[1] + above * unit, carry[2] + above

    _store_sums(each_row(rows, body, (jnp.zeros(width, F32),) * 3), (biases, gains, shifts))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _gelu_drop(y, bias, noise, length):  # noqa: ANN001, ANN202
    call = row_call(partial(_gelu_drop_kernel, length), y, [("rows", y.dtype)], name="gelu_drop")
    return call(y, bias, *noise)[0]


def _gelu_drop_rule(y, bias, noise, length):  # noqa: ANN001, ANN202
    return _gelu_drop(y, bias, noise, length), (y, bias, noise)


def _gelu_drop_back(length, saved, slope):  # noqa: ANN001, ANN202
    y, bias, noise = saved
    outputs = [("sums", F32), ("rows", y.dtype)]
    kernel = partial(_gelu_drop_back_kernel, length)
    biases, towards = row_call(kernel, y, outputs, name="gelu_drop_back")(y, bias, slope, *noise)
    return towards, biases.sum(0), None


_gelu_drop.defvjp(_gelu_drop_rule, _gelu_drop_back)


def _gelu_drop_kernel(length, rows, y, bias, rate, seeds, out) -> None:  # noqa: ANN001
    beside, width = bias[:], y.shape[1]

    def body(row: Array, carry: int) -> int:
        value = read(y, row) + beside
        value = value * 0.5 * (1.0 + jax.lax.erf(value * _SQRT_HALF))
        write(out, row, value * keep_row(rate, seeds, length, row, width))
        return carry

    each_row(rows, body, 0)


def _gelu_drop_back_kernel(length, rows, y, bias, slope, rate, seeds, biases, towards) -> None:  # noqa: ANN001
    beside, width = bias[:], y.shape[1]

    def body(row: Array, carry: tuple[Array]) -> tuple[Array]:
        value = read(y, row) + beside
        steep = 0.5 * (1.0 + jax.lax.erf(value * _SQRT_HALF)) + value * _DENSITY * jnp.exp(-0.5 * value * value)
        own = read(slope, row) * keep_row(rate, seeds, length, row, width) * steep
        write(towards, row, own)
        return (carry[0] + own,)

    _store_sums(each_row(rows, body, (jnp.zeros(width, F32),)), (biases,))


def _store_sums(found: tuple[Array, ...], refs: tuple[Any, ...]) -> None:
    program = pl.program_id(0)
    for value, ref in zip(found, refs, strict=True):
        ref[program, :] = value
