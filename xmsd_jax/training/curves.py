"""TensorBoard scalars of a training run."""

from pathlib import Path
from types import TracebackType
from typing import Any

from xmsd_jax.training.history import Epoch


class Curves:
    """Writes event files into a folder; an epoch that a continued run trains again is shown once."""

    def __init__(self, folder: Path, accepted: str) -> None:
        """`accepted`: what accepted tokens are called, "tau" or "n_free"."""
        self.folder, self.accepted = Path(folder), accepted
        self._writer: Any = None

    def __enter__(self) -> "Curves":
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Close the file, if one was begun."""
        if self._writer is not None:
            self._writer.close()

    def write(self, epoch: Epoch) -> None:
        """Add one epoch; the first of a run hides what an earlier run wrote from it on."""
        if self._writer is None:
            from tensorboardX import SummaryWriter  # here, not above: only a run that trains needs it

            self.folder.mkdir(parents=True, exist_ok=True)
            self._writer = SummaryWriter(str(self.folder), purge_step=epoch.epoch)
        values = {
            "loss/training": epoch.training_loss,
            "loss/validation": epoch.validation_loss,
            f"validation/{self.accepted}": epoch.accepted,
            "learning_rate": epoch.learning_rate,
        }
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch.epoch)
