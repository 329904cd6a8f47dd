"""What row kernels share: one program works through some positions, one after the other, each of them in registers.

At 3,200 positions of 4,096 numbers an elementwise pass costs some 10 us a tensor on an H100, and XLA cuts norms,
dropout, residuals and the loss into many passes. A row kernel reads its inputs once and writes its outputs once; sums
over positions (of scales and shifts) stay in registers and are written once a program.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, UInt32

from xmsd_jax.adapters.interface import EPSILON
from xmsd_jax.adapters.noise import Noise, kept, scale
from xmsd_jax.adapters.stored import States, Stored

PROGRAMS_A_CORE, WARPS = 2, 8
Row = Float[Array, " d"]
Scalar = Float[Array, ""]


class RowNoise(NamedTuple):
    """Dropout as row kernels take it: a share and one seed for each answer."""

    rate: Float[Array, "1"]
    seeds: UInt32[Array, " b"]


def row_noise(noise: Noise | None) -> RowNoise:
    """That of `noise`; of None, numbers that are not read."""
    if noise is None:
        return RowNoise(jnp.zeros((1,), jnp.float32), jnp.zeros((1,), jnp.uint32))
    return RowNoise(jnp.reshape(noise.rate, (1,)).astype(jnp.float32), noise.seeds)


def row_call(
    kernel: Callable[..., None], like: States, outputs: Sequence[tuple[str, Any]], *, name: str, period: int = 1
) -> Callable[..., list[Array]]:
    """A call of `kernel(count, inputs..., outputs...)` over the positions of `like`, [n, d] or stored states.

    Inputs are whole arrays, or stored states (`read` takes a row of either). Outputs are "rows" [n, d], "each" [n],
    "sums" [programs, d] or "sum" [programs] of a dtype. A program works on every `programs`-th position; their number
    is a multiple of `period`.
    """
    count, width = math.prod(like.shape[:-1]), like.shape[-1]
    programs = max(min(PROGRAMS_A_CORE * _cores(), count) // period, 1) * period
    shapes = {"rows": (count, width), "each": (count,), "sums": (programs, width), "sum": (programs,)}
    made = [jax.ShapeDtypeStruct(shapes[which], dtype) for which, dtype in outputs]

    def whole(x: Any) -> pl.BlockSpec:
        return pl.BlockSpec(x.shape, lambda i: (0,) * len(x.shape))

    def call(*inputs: Any) -> list[Array]:
        return pl.pallas_call(
            functools.partial(kernel, count),
            grid=(programs,),
            in_specs=jax.tree.map(whole, inputs),
            out_specs=[whole(x) for x in made],
            out_shape=made,
            compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=1),
            interpret=jax.default_backend() != "gpu",
            name=name,
        )(*inputs)

    return call


@functools.cache
def _cores() -> int:
    """Multiprocessors of the GPU; where there is none, what an H100 has."""
    return getattr(jax.local_devices()[0], "core_count", None) or 132


def each_row(
    count: int,
    load: Callable[[Array], tuple[Array, ...]],
    body: Callable[[Array, tuple[Array, ...], Any], Any],
    start: Any,
) -> Any:
    """Run `body(row, load(row), carry)` over a program's rows of `count`; the next is read while one is worked on."""
    program, programs = pl.program_id(0), pl.num_programs(0)
    own = (count - program + programs - 1) // programs

    def turn(i: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        loaded, rest = carry
        coming = load(jnp.minimum(program + (i + 1) * programs, count - 1))
        return coming, body(program + i * programs, tuple(x.astype(jnp.float32) for x in loaded), rest)

    return jax.lax.fori_loop(0, own, turn, (load(program), start))[1]


def flat(x: States) -> Any:
    """Positions one after the other, [n, d]; stored states stay what they are."""
    return x if isinstance(x, Stored) else x.reshape(-1, x.shape[-1])


def read(ref: Any, row: Array) -> Row:
    """A position of an input."""
    if not isinstance(ref, Stored):
        return ref[row, :]
    length = ref.split.shape[1]
    answer = row // length
    return ref.split[ref.rows[answer], row - answer * length, :]


def write(ref: Any, row: Array, value: Row) -> Row:
    """Round and store a row; returns it as it was stored, in float32."""
    ref[row, :] = value.astype(ref.dtype)
    return value.astype(ref.dtype).astype(jnp.float32)


def keep_row(rate: Any, seeds: Any, length: int | None, row: Array, width: int) -> Any:
    """What dropout multiplies a row by (the mask of `noise.drop`); 1 without a `length` of answers."""
    if length is None:
        return jnp.ones((), jnp.float32)
    answer = row // length
    place = ((row - answer * length) * width + jnp.arange(width, dtype=jnp.int32)).astype(jnp.uint32)
    share = rate[0]
    return jnp.where(kept(place, seeds[answer], share), scale(share), 0.0)


def normalised(x: Row) -> tuple[Row, Scalar]:
    """`(x - mean) / std`, and one over the std."""
    # Both sums at once: a program waits for every reduction, and in float32 the difference of squares is good enough.
    mean, square = x.sum() / x.shape[0], (x * x).sum() / x.shape[0]
    inverse = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + EPSILON)
    return (x - mean) * inverse, inverse


def norm_slope(slope: Row, unit: Row, inverse: Scalar) -> Row:
    """The gradient before a normalisation, from the one after it."""
    width = unit.shape[0]
    return inverse * (slope - slope.sum() / width - unit * ((slope * unit).sum() / width))


def store_sums(found: tuple[Array, ...], refs: tuple[Any, ...]) -> None:
    """Write what a program summed up."""
    program = pl.program_id(0)
    for value, ref in zip(found, refs, strict=True):
        ref[program, :] = value
