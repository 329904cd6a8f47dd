"""How long each kernel of a call took on the device, from JAX's own profiler."""

import glob
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax


def kernel_profile(call: Callable[[], Any], steps: int) -> str:
    """Microseconds a step of every kernel of one call, the longest first; empty where the device tells nothing."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        files = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        data = jax.profiler.ProfileData.from_file(files[0])
        total, count = Counter[str](), Counter[str]()
        for plane in data.planes:
            for line in plane.lines if "GPU" in plane.name else ():
                for event in line.events if "Stream" in line.name else ():
                    total[event.name] += event.duration_ns
                    count[event.name] += 1
    lines = [f"{total.total() / steps / 1e3:10.1f} us a step, all kernels"]
    lines += [f"{t / steps / 1e3:10.2f} us {count[name] / steps:7.2f} x {name}" for name, t in total.most_common()]
    return "\n".join(lines) + "\n"
