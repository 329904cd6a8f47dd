"""LayerNorm, and residual with dropout and LayerNorm, as row kernels: a pass forward, one backward.

The backward pass computes mean and deviation again: the row is read anyway.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jaxtyping import Array

from xmsd_jax.adapters.noise import Noise
from xmsd_jax.adapters.row_kernels import (
    each_row,
    flat,
    keep_row,
    norm_slope,
    normalised,
    read,
    row_call,
    row_noise,
    store_sums,
    write,
)
from xmsd_jax.adapters.stored import States, Stored

F32 = jnp.float32


def norm_fused(x: States, gain: Array, shift: Array) -> Array:
    """`LN(x) * gain + shift` over the last axis, in the dtype of x [b, t, d]; `shift` is [d], or [t, d]."""
    return _norm(flat(x), gain, jnp.atleast_2d(shift)).reshape(x.shape)


def add_norm_fused(
    x: Array, y: Array, bias: Array, gain: Array, shift: Array, noise: Noise | None
) -> tuple[Array, Array]:
    """`s = x + drop(y + bias)` and `LN(s) * gain + shift`, of [b, t, d]."""
    length = None if noise is None else x.shape[1]
    both: Any = _add_norm(flat(x), flat(y), bias, gain, shift, row_noise(noise), length)
    return both[0].reshape(x.shape), both[1].reshape(x.shape)


def unit_fused(x: States) -> Array:
    """`(x - mean) / std` over the last axis."""
    return _unit(flat(x)).reshape(x.shape)


def add_unit_fused(x: States, y: Array) -> tuple[Array, Array]:
    """`s = x + y`, and `(s - mean) / std`."""
    total, unit = _add_unit(flat(x), flat(y))
    return total.reshape(x.shape), unit.reshape(x.shape)


@jax.custom_vjp
def _norm(x: States, gain: Array, shift: Array) -> Array:
    return row_call(_norm_kernel, x, [("rows", x.dtype)], name="norm")(x, gain, shift)[0]


def _norm_rule(x: Any, gain: Any, shift: Any) -> tuple[Array, Any]:
    # The states of a store need no gradient: then none is written.
    own = _values(x)
    return _norm(own, gain.value, shift.value), (own, gain.value, shift.value, _is_wanted(x))


def _norm_back(saved: Any, slope: Any) -> tuple[Array | None, Array, Array]:
    x, gain, shift, wanted = saved
    slope = jnp.zeros(slope.shape, x.dtype) if isinstance(slope, SymbolicZero) else slope
    outputs = [("sums", F32), ("sums", F32), *([("rows", x.dtype)] if wanted else [])]
    call = row_call(_norm_back_kernel, x, outputs, name="norm_back", period=len(shift))
    gains, sums, *towards = call(x, gain, slope)
    shifts = sums.reshape(-1, *shift.shape).sum(0)
    return (towards[0] if wanted else None), gains.sum(0), shifts


_norm.defvjp(_norm_rule, _norm_back, symbolic_zeros=True)


def _norm_kernel(count: int, x: Any, gain: Any, shift: Any, out: Any) -> None:
    scale, period = gain[:], shift.shape[0]

    def body(row: Array, rows: Any, carry: int) -> int:
        write(out, row, normalised(rows[0])[0] * scale + shift[row % period, :])
        return carry

    each_row(count, lambda row: (read(x, row),), body, 0)


def _norm_back_kernel(count: int, x: Any, gain: Any, slope: Any, gains: Any, shifts: Any, *towards: Any) -> None:
    scale = gain[:]

    def body(row: Array, rows: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        value, above = rows
        unit, inverse = normalised(value)
        if towards:
            write(towards[0], row, norm_slope(above * scale, unit, inverse))
        return carry[0] + above * unit, carry[1] + above

    blank = jnp.zeros(slope.shape[1], F32)
    store_sums(each_row(count, lambda row: (read(x, row), slope[row, :]), body, (blank, blank)), (gains, shifts))


@jax.custom_vjp
def _unit(x: States) -> Array:
    return row_call(_unit_kernel, x, [("rows", x.dtype)], name="unit")(x)[0]


def _unit_rule(x: Any) -> tuple[Array, Any]:
    own = _values(x)
    return _unit(own), (own, _is_wanted(x))


def _unit_back(saved: Any, slope: Any) -> tuple[Array | None]:
    x, wanted = saved
    if not wanted or isinstance(slope, SymbolicZero):
        return (None,)
    return (row_call(_unit_back_kernel, x, [("rows", x.dtype)], name="unit_back")(x, slope)[0],)


_unit.defvjp(_unit_rule, _unit_back, symbolic_zeros=True)


def _unit_kernel(count: int, x: Any, out: Any) -> None:
    def body(row: Array, rows: Any, carry: int) -> int:
        write(out, row, normalised(rows[0])[0])
        return carry

    each_row(count, lambda row: (read(x, row),), body, 0)


def _unit_back_kernel(count: int, x: Any, slope: Any, towards: Any) -> None:
    def body(row: Array, rows: Any, carry: int) -> int:
        write(towards, row, norm_slope(rows[1], *normalised(rows[0])))
        return carry

    each_row(count, lambda row: (x[row, :], slope[row, :]), body, 0)


@jax.custom_vjp
def _add_unit(x: States, y: Array) -> tuple[Array, Array]:
    total, unit = row_call(_add_unit_kernel, y, [("rows", y.dtype)] * 2, name="add_unit")(x, y)
    return total, unit


def _add_unit_rule(x: States, y: Array) -> tuple[tuple[Array, Array], tuple[Array, bool]]:
    total, unit = _add_unit(x, y)
    return (total, unit), (total, isinstance(x, Stored))


def _add_unit_back(saved: tuple[Array, bool], slopes: tuple[Array, Array]) -> tuple[Array | None, Array]:
    total, stored = saved
    towards = row_call(_add_unit_back_kernel, total, [("rows", total.dtype)], name="add_unit_back")(total, *slopes)[0]
    return None if stored else towards, towards


_add_unit.defvjp(_add_unit_rule, _add_unit_back)


def _add_unit_kernel(count: int, x: Any, y: Any, total: Any, out: Any) -> None:
    def body(row: Array, rows: Any, carry: int) -> int:
        write(out, row, normalised(write(total, row, rows[0] + rows[1]))[0])
        return carry

    each_row(count, lambda row: (read(x, row), y[row, :]), body, 0)


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

    each_row(count, lambda row: (read(x, row), y[row, :]), body, 0)


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
    store_sums(found, (biases, gains, shifts))


def _values(x: Any) -> Any:
    """Of an argument of a rule with symbolic zeros, which may be stored states."""
    return jax.tree.map(lambda leaf: leaf.value, x)


def _is_wanted(x: Any) -> bool:
    """Whether it needs a gradient."""
    return isinstance(x, CustomVJPPrimal) and bool(x.perturbed)
