"""Write reference_pixels.npz: pixels that transformers' own processors make. Run once, in an environment of its own:

    python3.11 -m venv "$ENV" && "$ENV"/bin/pip install torch==2.13.0 transformers==5.23.0 pillow
    "$ENV"/bin/pip install --no-deps torchvision==0.29.1
    "$ENV"/bin/python -m tests.torch_bridge.make_reference_pixels       (in the root of the checkout)

torchvision must not be installed beside the project's own torch. Resizing needs none of its compiled operators, which
this pair of versions does not load: the names that its import asks for are declared here.
"""

import importlib.metadata
from typing import Any

import numpy as np
import torch

from tests.torch_bridge.reference_pixels import FILE, SIZES, grey_levels, images, kept, videos


def processors() -> dict[str, Any]:
    """The library's processors by the names of SIZES, at those sizes."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from transformers import CLIPImageProcessor, VideoLlavaImageProcessor, VideoLlavaVideoProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    kinds = (VideoLlavaImageProcessor, VideoLlavaVideoProcessor, CLIPImageProcessor, CLIPImageProcessorPil)
    return {
        name: kind(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        for (name, size), kind in zip(SIZES.items(), kinds, strict=True)
    }


def pixels(processor: Any, frames: np.ndarray, size: int) -> np.ndarray:
    """What a processor makes of an image or of eight frames, float32[f, 3, y, x]."""
    (made,) = processor([frames] if frames.ndim == 4 else frames, return_tensors="np").values()
    return np.asarray(made, np.float32).reshape(-1, 3, size, size)


def main() -> None:
    """Write the file: kept grey levels, and one row of normalised pixels, of every processor and picture."""
    found: dict[str, np.ndarray] = {}
    for name, processor in processors().items():
        shown = videos() if name.endswith("video") else images()
        for title, frames in shown.items():
            made = pixels(processor, frames, SIZES[name])
            levels = grey_levels(made)
            assert np.abs(levels - levels.round()).max() < 1e-3, "the processors round to 8 bits after resizing"
            found[f"{name}|{title}|levels"] = kept(levels.round().astype(np.uint8))
            found[f"{name}|{title}|row"] = made[0, :, SIZES[name] // 3]
    versions = [
        f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torchvision", "torch", "pillow")
    ]
    np.savez_compressed(FILE, versions=np.array(", ".join(versions)), **found)
    print(f"{FILE}: {FILE.stat().st_size / 1e3:.0f} kB, {versions}")


if __name__ == "__main__":
    main()
