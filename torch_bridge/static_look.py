"""What a model sees of a clip, one CUDA graph from pixels to visual tokens in place of hundreds of small launches."""

import torch
from torch import Tensor

from torch_bridge.graphs import captured
from torch_bridge.vlm import VLM


class GraphedLook:
    """`vlm.look` on a GPU: the same kernels, captured by the first call, and again for frames of another shape."""

    def __init__(self, vlm: VLM) -> None:
        """Prepare; nothing is captured yet."""
        self._vlm = vlm
        self._graph: torch.cuda.CUDAGraph | None = None
        self._pixels = self._seen = torch.empty(0)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Frames float32[f, 3, y, x], on the device or the host -> visual tokens [s, d], memory of their own."""
        if self._graph is None or pixels.shape != self._pixels.shape:
            self._capture(pixels)
        assert self._graph is not None
        self._pixels.copy_(pixels)
        self._graph.replay()
        return self._seen.clone()

    def _capture(self, pixels: Tensor) -> None:
        """Capture for frames of this shape; a failure leaves nothing captured, so the next call tries again."""
        vlm = self._vlm
        self._graph = None
        self._seen = vlm.look(pixels)
        self._pixels = pixels.to(vlm.device, vlm.dtype, copy=True)
        # A side of its own: the other model may look, or take a step, at the same time.
        self._graph = captured(vlm.device, self._work, side=f"vision of {vlm.name}")

    def _work(self) -> None:
        self._seen.copy_(self._vlm.look(self._pixels))
