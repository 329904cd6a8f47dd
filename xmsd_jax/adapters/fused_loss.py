"""The end of an adapter and the loss in one row kernel, there and back: what it writes is the gradient.

The study's loss of a position needs that position alone, and what it weighs is known from the masks. So the kernel that
predicts a state also compares it, and writes the gradient with respect to its inputs; nothing is kept for later.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from xmsd_jax.adapters.noise import Noise
from xmsd_jax.adapters.row_kernels import (
    Row,
    Scalar,
    each_row,
    flat,
    keep_row,
    norm_slope,
    normalised,
    read,
    row_call,
    row_noise,
    write,
)
from xmsd_jax.adapters.stored import States, Stored

F32 = jnp.float32
_FLOOR = 1e-8  # of each norm, as in xmsd_jax.training.losses


class Compared(NamedTuple):
    """What a prediction [b, t, d] is compared with.

    `target` [b, t, d], in an array or stored; `masks` float32[2, b, t], 1 where (t, t) and (t, t + 1) are pairs;
    `scales` float32[2]: what the two summed losses count for in the value.
    """

    target: States
    masks: Float[Array, "2 b t"]
    scales: Float[Array, "2"]


def norm_loss_fused(
    x: States,
    y: Array,
    alpha: Array | None,
    gain: Array,
    shift: Array,
    noise: Noise | None,
    compared: Compared,
    *,
    cosine: float,
) -> tuple[Scalar, Float[Array, " b"]]:
    """Loss of `LN(x + alpha * drop(y)) * gain + shift` over pairs (t, t): its value, and its sum in each answer.

    Without alpha it is the plain sum `x + y`. Gradients go to x (unless stored), y, alpha, gain and shift. Only
    the value may be differentiated.
    """
    shape = y.shape
    if alpha is None and noise is not None:
        raise ValueError("dropout of a plain sum is not computed here; give alpha")
    rows = [flat(a) for a in (x, y, compared.target)]
    static = (None if noise is None else shape[1], alpha is not None, cosine)
    share = jnp.ones(1) if alpha is None else alpha.reshape(1)
    found: Any = _norm_loss(
        *rows, share, gain, shift, row_noise(noise), compared.masks[0].reshape(-1), compared.scales, static
    )
    value, each = found
    return value, each.reshape(shape[:2]).sum(1)


@partial(jax.custom_vjp, nondiff_argnums=(9,))
def _norm_loss(x, y, target, alpha, gain, shift, noise, mask, scales, static) -> Any:
    return _norm_loss_rule(x, y, target, alpha, gain, shift, noise, mask, scales, static)[0]


def _norm_loss_rule(x, y, target, alpha, gain, shift, noise, mask, scales, static) -> Any:
    scaled = static[1]
    outputs = [("each", F32), ("sums", F32), ("sums", F32), ("rows", y.dtype)]
    outputs += [("rows", y.dtype), ("sum", F32)] if scaled else []
    call = row_call(partial(_norm_loss_kernel, static), y, outputs, name="norm_loss")
    each, gains, shifts, *towards = call(x, y, target, alpha, gain, shift, *noise, mask, scales)
    return ((each * scales[0]).sum(), each), (gains, shifts, towards, isinstance(x, Stored))


def _norm_loss_back(static, saved, slopes) -> Any:
    gains, shifts, towards, stored = saved
    outer = slopes[0]  # 1 where the value itself is differentiated, and then XLA drops the products
    x, *others = (a * outer.astype(a.dtype) for a in towards)
    y, alpha = (others[0], others[1].sum().reshape(1)) if others else (x, jnp.zeros((1,), F32))
    return None if stored else x, y, None, alpha, gains.sum(0) * outer, shifts.sum(0) * outer, None, None, None


_norm_loss.defvjp(_norm_loss_rule, _norm_loss_back)


def _norm_loss_kernel(
    static: Any,
    count: int,
    x: Any,
    y: Any,
    target: Any,
    alpha: Any,
    gain: Any,
    shift: Any,
    rate: Any,
    seeds: Any,
    mask: Any,
    scales: Any,
    each: Any,
    gains: Any,
    shifts: Any,
    towards: Any,
    *added: Any,
) -> None:
    length, scaled, cosine = static
    width, share, weight = y.shape[1], alpha[0], scales[0]

    def body(row: Array, rows: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        value, dropped, true = rows
        if scaled:
            dropped *= keep_row(rate, seeds, length, row, width)
        unit, inverse = normalised(value + (share * dropped if scaled else dropped))
        gain_row = gain[:]
        loss, slope = pair_loss(unit * gain_row + shift[:], true, cosine)
        counts = mask[row]
        each[row] = loss * counts
        slope *= counts * weight
        own = norm_slope(slope * gain_row, unit, inverse)
        write(towards, row, own)
        sums = (carry[0] + slope * unit, carry[1] + slope)
        if not scaled:
            return sums
        write(added[0], row, own * share * keep_row(rate, seeds, length, row, width))
        return *sums, carry[2] + (own * dropped).sum()

    blank = jnp.zeros(width, F32)
    start = (blank, blank, *([jnp.zeros((), F32)] if scaled else []))
    found = each_row(count, lambda row: (read(x, row), y[row, :], read(target, row)), body, start)
    program = pl.program_id(0)
    gains[program, :], shifts[program, :] = found[0], found[1]
    if scaled:
        added[1][program] = found[2]


def blend_loss_fused(
    hidden: Array,
    y: Array,
    bias: Array,
    alpha: Array,
    compared: Compared,
    *,
    cosines: tuple[float, float],
) -> tuple[Scalar, Float[Array, "b 2"]]:
    """Loss of `hidden + alpha * (y + bias - hidden)` over pairs (t, t) and (t, t + 1): its value, its sums by answer.

    Gradients go to y, bias and alpha; `hidden` are stored states. `cosines`: weights of the cosine in the two losses.
    """
    shape = y.shape
    rows = [flat(a) for a in (hidden, y, compared.target)]
    found: Any = _blend_loss(*rows, bias, alpha.reshape(1), compared.masks.reshape(2, -1), compared.scales, cosines)
    value, same, following = found
    return value, jnp.stack([each.reshape(shape[:2]).sum(1) for each in (same, following)], -1)


@partial(jax.custom_vjp, nondiff_argnums=(7,))
def _blend_loss(hidden, y, target, bias, alpha, masks, scales, cosines) -> Any:
    return _blend_loss_rule(hidden, y, target, bias, alpha, masks, scales, cosines)[0]


def _blend_loss_rule(hidden, y, target, bias, alpha, masks, scales, cosines) -> Any:
    outputs = [("each", F32), ("each", F32), ("rows", y.dtype), ("sums", F32), ("sum", F32)]
    call = row_call(partial(_blend_loss_kernel, cosines), y, outputs, name="blend_loss")
    same, following, towards, biases, alphas = call(hidden, y, target, bias, alpha, masks, scales)
    value = (same * scales[0] + following * scales[1]).sum()
    return (value, same, following), (towards, biases, alphas)


def _blend_loss_back(cosines, saved, slopes) -> Any:
    towards, biases, alphas = saved
    outer = slopes[0]
    towards = towards * outer.astype(towards.dtype)
    return None, towards, None, biases.sum(0) * outer, alphas.sum().reshape(1) * outer, None, None


_blend_loss.defvjp(_blend_loss_rule, _blend_loss_back)


def _blend_loss_kernel(
    cosines: tuple[float, float],
    count: int,
    hidden: Any,
    y: Any,
    target: Any,
    bias: Any,
    alpha: Any,
    masks: Any,
    scales: Any,
    same: Any,
    following: Any,
    towards: Any,
    biases: Any,
    alphas: Any,
) -> None:
    share, last = alpha[0], y.shape[0] - 1

    def load(row: Array) -> tuple[Array, ...]:
        return y[row, :], hidden[row, :], read(target, row), read(target, jnp.minimum(row + 1, last))

    def body(row: Array, rows: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        value, start, *true = rows
        apart = value + bias[:] - start
        own = start + share * apart
        slope = jnp.zeros_like(own)
        for which, out in enumerate((same, following)):
            counts = masks[which, row]
            loss, part = pair_loss(own, true[which], cosines[which])
            out[row] = loss * counts
            slope += part * (counts * scales[which])
        write(towards, row, slope * share)
        return carry[0] + slope * share, carry[1] + (slope * apart).sum()

    program = pl.program_id(0)
    start = (jnp.zeros(y.shape[1], F32), jnp.zeros((), F32))
    biases[program, :], alphas[program] = each_row(count, load, body, start)


def pair_loss(own: Row, true: Row, cosine: float) -> tuple[Scalar, Row]:
    """`|y - h|^2 / d + cosine * (1 - cos(y, h))` of one position, and its gradient with respect to y."""
    width = own.shape[0]
    apart = own - true
    loss, slope = (apart * apart).sum() / width, apart * (2.0 / width)
    if cosine:
        own_norm, true_norm = (jnp.sqrt(jnp.maximum((x * x).sum(), _FLOOR**2)) for x in (own, true))
        similar = (own * true).sum() / (own_norm * true_norm)
        loss = loss + cosine * (1.0 - similar)
        slope = slope - cosine * (true / (own_norm * true_norm) - own * (similar / (own_norm * own_norm)))
    return loss, slope
