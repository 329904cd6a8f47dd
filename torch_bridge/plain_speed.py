"""The compiled PyTorch baseline ready to be timed, with data that another framework holds on the same device."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_bridge.plain_adapters import load_plain, make_plain
from torch_bridge.plain_layers import Attention
from torch_bridge.plain_training import Mode, Offset, PlainData, PlainTrainer, Precision


def forget_compiled() -> None:
    """Forget what was compiled; trainers made before this must not be used after it."""
    torch.compiler.reset()


class PlainRun:
    """An adapter in training on a split that lies on the device.

    Args:
        kind: of the adapter.
        width: of a state.
        drafter, target: states [n, t, d] that DLPack takes over without a copy; drafter may be None.
        same_mask, next_mask: bool[n, t] on the host.
        offset, mode, precision: as `PlainTrainer` takes them.
        attention: form of it.
        dropout: share.
        state: starting values by the original's names; None draws them.
    """

    def __init__(
        self,
        kind: str,
        *,
        width: int,
        drafter: Any,
        target: Any,
        same_mask: np.ndarray,
        next_mask: np.ndarray,
        offset: Offset,
        mode: Mode,
        attention: Attention = "matmul",
        precision: Precision = "bfloat16",
        dropout: float = 0.1,
        state: dict[str, np.ndarray] | None = None,
    ) -> None:
        module = make_plain(kind, width, attention=attention, dropout=dropout)
        if state is not None:
            load_plain(module, state)
        same, following = (torch.from_numpy(np.array(mask)).to(_device()) for mask in (same_mask, next_mask))
        states = None if drafter is None else torch.from_dlpack(drafter)
        self._trainer: PlainTrainer | None = PlainTrainer(
            module.to(_device()).train(),
            PlainData(states, torch.from_dlpack(target), same, following),
            offset=offset,
            learning_rate=1e-3,
            precision=precision,
            mode=mode,
        )
        self._loss: Tensor | None = None

    def put(self, order: np.ndarray) -> list[Tensor]:
        """Batches of rows, int[steps, b], on the device."""
        return [torch.from_numpy(rows).to(_device(), torch.int64) for rows in order]

    def train(self, batches: list[Tensor]) -> None:
        """Train on what `put` gave, and wait for the device."""
        for rows in batches:
            self._loss = self._step(rows)
        _synchronize()

    def losses(self, batches: list[Tensor]) -> np.ndarray:
        """The same; the loss before every step, float64[steps]."""
        return np.array([float(self._step(rows)) for rows in batches])

    @property
    def loss(self) -> float:
        """Of the last step."""
        return float("nan") if self._loss is None else float(self._loss)

    def close(self) -> None:
        """Let go of the device memory."""
        self._trainer = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _step(self, rows: Tensor) -> Tensor:
        if self._trainer is None:
            raise ValueError("the run was closed; make another one")
        return self._trainer.step(rows)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
