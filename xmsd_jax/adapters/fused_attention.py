"""Attention over an answer in one Pallas kernel, forward and backward, for a GPU.

One program computes one head of one answer. It reads queries, keys and values out of the packed projection, so nothing
is transposed in memory, and the backward pass computes the weights again instead of keeping them. Memory traffic is the
floor: 4 d numbers a position forward, 7 d backward.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool, Float

from xmsd_jax.adapters.attend import MASKED
from xmsd_jax.adapters.interface import HEADS
from xmsd_jax.adapters.noise import Noise, kept, scale

CHUNK = 128
"""Numbers of a head that are multiplied at once."""
FORWARD_WARPS, BACKWARD_WARPS, STAGES = 4, 8, 2


def attend_fused(
    qkv: Float[Array, "b t dq"],
    bias: Float[Array, " dq"],
    real: Bool[Array, "b t"],
    causal: bool,
    noise: Noise | None,
) -> Float[Array, "b t d"]:
    """See `xmsd_jax.adapters.attend.attend`."""
    rate = jnp.zeros((1,), jnp.float32) if noise is None else jnp.reshape(noise.rate, (1,)).astype(jnp.float32)
    seeds = jnp.zeros(len(qkv), jnp.uint32) if noise is None else noise.seeds
    packed = qkv.reshape(*qkv.shape[:2], 3 * HEADS, -1)
    bias = bias.astype(jnp.float32).reshape(3 * HEADS, -1)
    out: Any = _attend(packed, bias, real.astype(jnp.int32), seeds, rate, causal, noise is not None)
    return out.reshape(*qkv.shape[:2], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(packed, bias, real, seeds, rate, causal, noisy) -> Any:
    out = jax.ShapeDtypeStruct((*packed.shape[:2], HEADS, packed.shape[3]), packed.dtype)
    return _call(_forward, packed, causal, noisy, out)(packed, bias, real, seeds, rate)


def _attend_forward(packed, bias, real, seeds, rate, causal, noisy) -> Any:
    return _attend(packed, bias, real, seeds, rate, causal, noisy), (packed, bias, real, seeds, rate)


def _attend_backward(causal, noisy, saved, slope) -> Any:
    packed = saved[0]
    towards = _call(_backward, packed, causal, noisy, packed, slope=True)(slope, *saved)
    return towards, towards.astype(jnp.float32).sum((0, 1)), None, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _call(kernel, packed, causal, noisy, out, *, slope=False) -> Any:
    rows, length, packs, width = packed.shape
    block = max(16, pl.next_power_of_2(length))

    def answer(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, *shape), lambda b, h: (b,) + (0,) * len(shape))

    def whole(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda b, h: (0,) * len(shape))

    inputs = [answer(block, packs, width), whole(packs, width), answer(block), answer(), whole(1)]
    return pl.pallas_call(
        functools.partial(kernel, length=length, causal=causal, noisy=noisy),
        grid=(rows, HEADS),
        in_specs=([answer(block, HEADS, width)] if slope else []) + inputs,
        out_specs=answer(block, *out.shape[2:]),
        out_shape=jax.ShapeDtypeStruct(out.shape, out.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=BACKWARD_WARPS if slope else FORWARD_WARPS, num_stages=STAGES),
        interpret=jax.default_backend() != "gpu",
        name=kernel.__name__.strip("_") + "_attention",
    )


def _forward(packed, bias, real, seed, rate, out, *, length, causal, noisy) -> Any:
    head, width = pl.program_id(1), packed.shape[-1]
    inside = jnp.arange(packed.shape[0]) < length
    scores = _scores(packed, bias, head, inside)
    weights, keep = _weights(scores, real, seed, rate, head, length, causal, noisy)
    weights = (weights * keep).astype(out.dtype)
    for chunk in _chunks(width):
        value = _biased(packed, bias, 2 * HEADS + head, chunk, inside)
        _store(out, head, chunk, inside, _dot(weights, value, 1, 0))


def _backward(slope, packed, bias, real, seed, rate, out, *, length, causal, noisy) -> Any:
    head, width = pl.program_id(1), packed.shape[-1]
    inside = jnp.arange(packed.shape[0]) < length
    weights, keep = _weights(_scores(packed, bias, head, inside), real, seed, rate, head, length, causal, noisy)
    towards = jnp.zeros(weights.shape, jnp.float32)
    for chunk in _chunks(width):
        value = _biased(packed, bias, 2 * HEADS + head, chunk, inside)
        above = _load(slope, head, chunk, inside)
        towards += _dot(above, value, 1, 1)
    towards *= keep
    towards = weights * (towards - (towards * weights).sum(1, keepdims=True)) / math.sqrt(width)
    towards, weights = towards.astype(out.dtype), (weights * keep).astype(out.dtype)
    for chunk in _chunks(width):
        query, key = (_biased(packed, bias, which * HEADS + head, chunk, inside) for which in range(2))
        above = _load(slope, head, chunk, inside)
        for which, value in enumerate(
            (_dot(towards, key, 1, 0), _dot(towards, query, 0, 0), _dot(weights, above, 0, 0))
        ):
            _store(out, which * HEADS + head, chunk, inside, value)


def _scores(packed, bias, head, inside) -> Any:
    scores = jnp.zeros((len(inside), len(inside)), jnp.float32)
    for chunk in _chunks(packed.shape[-1]):
        query, key = (_biased(packed, bias, which * HEADS + head, chunk, inside) for which in range(2))
        scores += _dot(query, key, 1, 1)
    return scores / math.sqrt(packed.shape[-1])


def _weights(scores, real, seed, rate, head, length, causal, noisy) -> Any:
    """Softmax weights, and what dropout multiplies them by."""
    block = scores.shape[0]
    row, column = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (0, 1))
    inside = jnp.arange(block) < length
    looks = plgpu.load(real.at[:], mask=inside, other=0)
    mask = (looks > 0)[None, :] & ((column <= row) if causal else (column < length))
    scores = jnp.where(mask, scores, MASKED)
    powers = jnp.exp(scores - scores.max(1, keepdims=True))
    weights = powers / powers.sum(1, keepdims=True)
    if not noisy:
        return weights, jnp.ones((), jnp.float32)
    place = ((head * length + row) * length + column).astype(jnp.uint32)
    share = rate[0]
    return weights, jnp.where(kept(place, seed[...], share), scale(share), 0.0)


def _chunks(width: int) -> list[Any]:
    size = min(CHUNK, width)
    return [pl.ds(start, size) for start in range(0, width, size)]


def _load(ref, pack, chunk, inside) -> Any:
    return plgpu.load(ref.at[:, pack, chunk], mask=inside[:, None], other=0.0)


def _biased(packed, bias, pack, chunk, inside) -> Any:
    value = _load(packed, pack, chunk, inside).astype(jnp.float32) + bias[pack, chunk][None]
    return jnp.where(inside[:, None], value, 0.0).astype(packed.dtype)


def _store(ref, pack, chunk, inside, value) -> None:
    plgpu.store(ref.at[:, pack, chunk], value.astype(ref.dtype), mask=inside[:, None])


def _dot(a, b, left: int, right: int) -> Any:
    return jax.lax.dot_general(a, b, (((left,), (right,)), ((), ())), preferred_element_type=jnp.float32)
