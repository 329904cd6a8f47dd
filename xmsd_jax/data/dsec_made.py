"""A made-up recording in DSEC's own format, of any size: for measuring speed where DSEC is not at hand.

Pixels and polarities are uniformly random: it takes 3.0 bytes an event, real events of DSEC packed alike 3.2.
"""

from pathlib import Path

import numpy as np

from xmsd_jax.config import UserError
from xmsd_jax.data.dsec import FPS, HEIGHT, WIDTH

NAME = "made_00_a"
START_US = 50_000_000_000
"""Of DSEC's order: it does not fit 32 bits, the event times before the offset do."""
_CHUNK = 1 << 16


def write_made_events(root: Path, *, seconds: int, events_per_second: int, seed: int = 0) -> Path:
    """Write `<root>/made_00_a`, events and image times but no pictures; return the sequence's folder.

    The images begin with the events; there is one more image time at the very end. Raises UserError without h5py.
    """
    try:
        import h5py
        import hdf5plugin
    except ImportError as error:
        raise UserError(
            f"{root}: DSEC's format needs h5py and hdf5plugin ({error}); pip install 'xmsd[dsec]'"
        ) from error
    home = root / NAME
    (home / "events" / "left").mkdir(parents=True, exist_ok=True)
    (home / "images").mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    duration = seconds * 1_000_000
    t = np.repeat(np.arange(duration, dtype=np.uint32), rng.poisson(events_per_second / 1e6, duration))
    columns = {
        "p": rng.integers(0, 2, len(t), np.uint8), "t": t,
        "x": rng.integers(0, WIDTH, len(t), np.uint16), "y": rng.integers(0, HEIGHT, len(t), np.uint16),
    }  # fmt: skip
    blosc = hdf5plugin.Blosc(cname="zstd", clevel=1, shuffle=hdf5plugin.Blosc.SHUFFLE)
    with h5py.File(home / "events" / "left" / "events.h5", "w") as file:
        for name, column in columns.items():
            file.create_dataset(f"events/{name}", data=column, chunks=(min(_CHUNK, len(t)),), **blosc)
        file["ms_to_idx"] = np.searchsorted(t, np.arange(seconds * 1000 + 1) * 1000).astype(np.uint64)
        file["t_offset"] = np.int64(START_US)
    times = START_US + np.arange(0, duration + 1, 1_000_000 // FPS)
    (home / "images" / "timestamps.txt").write_text("".join(f"{time}\n" for time in times))
    return home
