"""Small recordings in DSEC's form, and the stage's configuration for them."""

from pathlib import Path
from typing import Any

from tests.data.dsec_recordings import write_recording
from xmsd_jax.pipeline.clips import ClipsConfig
from xmsd_jax.pipeline.dsec_clips import DsecConfig

SPLITS = {"train": ("a", "b"), "test": ("c",)}
LENGTHS = {"a": 2.35, "b": 1.0, "c": 3.0}


def recorded(root: Path) -> tuple[Path, dict[str, Any]]:
    """Three sequences of 3, 1 and 5 clips, and what is true of them."""
    return root, {name: write_recording(root, name, seconds=s, seed=i) for i, (name, s) in enumerate(LENGTHS.items())}


def of(root: Path, **fields) -> ClipsConfig:
    return ClipsConfig(dsec=DsecConfig(**({"roots": (root,), "splits": SPLITS, "workers": 1} | fields)))
