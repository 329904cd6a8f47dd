"""On what and how fast: devices, the dtype of a step, where the split lies, and the chip's own speed."""

from dataclasses import dataclass
from functools import cache
from time import perf_counter
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from xmsd_jax.config import ConfigError, UserError
from xmsd_jax.training.step import DATA

Compute = Literal["auto", "float32", "bfloat16"]
Place = Literal["auto", "resident", "stream"]
RESIDENT_SHARE = 0.8
"""Of a device's free memory, what a split may take of it."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How a training run uses the machine; but for `compute` it changes no result.

    compute: dtype of states and matrices in a step; parameters and moments are float32 always. "auto" is bfloat16 on a
    GPU and float32 elsewhere. mode: "resident" keeps the split in device memory, "stream" reads it from the store while
    training runs, "auto" decides by free memory. devices: how many, all of them by default; batches are cut over them.
    stream_steps: steps that a piece of a stream is for. coordinator, processes, process: of a run over several
    processes (machines), as `jax.distributed.initialize` takes them; such a run keeps no checkpoints.
    """

    compute: Compute = "auto"
    mode: Place = "auto"
    devices: int | None = None
    stream_steps: int = 8
    coordinator: str | None = None
    processes: int = 1
    process: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError for numbers that no machine has."""
        if self.devices is not None and self.devices < 1:
            raise ConfigError(f"devices: must be at least 1, or null for all, got {self.devices}")
        if self.stream_steps < 1 or self.processes < 1:
            raise ConfigError(
                f"stream_steps and processes: must be at least 1, got {self.stream_steps} and {self.processes}"
            )
        if not 0 <= self.process < self.processes:
            raise ConfigError(f"process: must be 0..{self.processes - 1}, got {self.process}")
        if (self.coordinator is None) != (self.processes == 1):
            raise ConfigError("coordinator: HOST:PORT of process 0 where there are several processes, else null")

    def join(self) -> None:
        """Meet the other processes; before anything else is computed."""
        if self.processes > 1 and not jax.distributed.is_initialized():
            jax.distributed.initialize(self.coordinator, self.processes, self.process)

    def mesh(self) -> Mesh:
        """The devices. Raises UserError for more than there are."""
        found = jax.devices()
        count = len(found) if self.devices is None else self.devices
        if count > len(found):
            raise UserError(f"engine.devices: {count} are asked for, {len(found)} are there; set it to {len(found)}")
        return jax.make_mesh((count,), (DATA,), devices=found[:count], axis_types=(AxisType.Auto,))

    @property
    def dtype(self) -> Any:
        """What `compute` comes to here."""
        name = self.compute
        if name == "auto":
            name = "bfloat16" if jax.default_backend() == "gpu" else "float32"
        return jnp.dtype(name)

    def is_resident(self, size: int) -> bool:
        """Whether a split of so many bytes is to lie on each device."""
        if self.mode != "auto":
            return self.mode == "resident"
        free = free_memory()
        return free is None or size <= RESIDENT_SHARE * free


def check_batch(batch: int, devices: int) -> None:
    """Raise UserError where a batch cannot be cut over the devices."""
    if batch % devices:
        raise UserError(
            f"recipe.batch: {batch} answers cannot be cut over {devices} devices; take a multiple of {devices}, or set "
            "engine.devices"
        )


def free_memory() -> int | None:
    """Bytes that are free on the first device; of the host where the device says nothing; None where nobody does."""
    told = jax.local_devices()[0].memory_stats()
    if told and "bytes_limit" in told:
        return told["bytes_limit"] - told["bytes_in_use"]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


@cache
def matmul_rate(dtype: Any) -> float:
    """FLOP/s of a large square matrix product on one device: measured once, in a fraction of a second."""
    size, repeats = (8192, 10) if jax.default_backend() == "gpu" else (768, 4)
    with jax.default_device(jax.local_devices()[0]):
        a, b = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
        scale = jnp.asarray(1 / size**0.5, dtype)
        product = jax.jit(lambda a, b: jax.lax.fori_loop(0, repeats, lambda _, x: (x @ b) * scale, a))
        jax.block_until_ready(product(a, b))
        seconds = []
        for _ in range(3):
            start = perf_counter()
            jax.block_until_ready(product(a, b))
            seconds.append(perf_counter() - start)
    return repeats * 2 * size**3 / min(seconds)


def step_flops(shapes: dict[str, tuple[int, ...]], positions: int, length: int) -> float:
    """Model FLOPs of training on so many positions: 6 a weight of a matrix, and attention's two products.

    Args:
        shapes: of the parameters by name; those of embeddings count nothing.
        positions: answers times their length.
        length: of an answer; attention is counted in full, masked or not.
    """
    weights = sum(int(np.prod(shape)) for name, shape in shapes.items() if name.endswith("kernel"))
    width = next((shape[0] for name, shape in shapes.items() if name == "layer.qkv.kernel"), 0)
    return 6.0 * weights * positions + 12.0 * width * length * positions
