"""The train step of the PyTorch baseline, all of it under `torch.compile`: one graph from row numbers to new weights.

Batches are taken out of data that lies on the device; nothing waits for the device. Gradients come from
`torch.autograd.grad` inside the graph, so that forward, backward, clip and AdamW are compiled, and under
"reduce-overhead" replayed as one CUDA graph, together.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._dynamo import config as dynamo
from torch.nn.functional import cosine_similarity
from torch.nn.utils import get_total_norm
from torch.optim.adamw import adamw

from torch_bridge.plain_adapters import PlainAdapter
from xmsd_jax.config import ConfigError

Precision = Literal["bfloat16", "float32"]
Offset = Literal[0, 1]
Mode = Literal["default", "reduce-overhead"] | None
PADDING = -1
COSINE_WEIGHT = 0.5
RECOMPILE_LIMIT = 128  # graphs of one function: all trainers of a process share `PlainTrainer._step`


class PlainData(NamedTuple):
    """Training answers on the device: states [n, t, d] or None where no adapter reads them, masks bool[n, t].

    `same_mask` keeps the pairs (t, t), `next_mask` the pairs (t, t + 1); never the last position's. Kept positions
    come first. A batch is of the same form, [b, t, d] and [b, t].
    """

    drafter: Tensor | None
    target: Tensor
    same_mask: Tensor
    next_mask: Tensor


class PlainTrainer:
    """Trains a module in place, step by step.

    `learning_rate`, a tensor [] on the device, may be changed between steps by `fill_`.

    Args:
        module: on the device of the data, in training mode; its parameters are float32.
        data: what `step` takes batches from.
        offset: 0: `MSE + 0.5 (1 - cos)` over pairs (t, t). 1: half of that, plus `0.5 MSE` over pairs (t, t + 1).
        learning_rate, weight_decay, clip: of AdamW (betas 0.9 and 0.999, eps 1e-8), and the global norm of gradients.
        precision: "bfloat16" is autocast, "float32" none.
        mode: of torch.compile; None runs operation by operation.

    Raises:
        ConfigError: no such offset, precision or mode, or the data lack states that the module reads.
    """

    def __init__(
        self,
        module: PlainAdapter,
        data: PlainData,
        *,
        offset: Offset,
        learning_rate: float,
        weight_decay: float = 0.01,
        clip: float = 1.0,
        precision: Precision = "bfloat16",
        mode: Mode = None,
        _backend: str = "inductor",
    ) -> None:
        _check(module, data, offset, precision, mode)
        self.module, self.data, self.mode = module, data, mode
        self.offset: Offset = offset
        self.precision: Precision = precision
        self.parameters = list[Tensor](module.parameters())
        self._compiled: set[int] = set()
        device = self.parameters[0].device
        self.learning_rate = torch.tensor(learning_rate, device=device)
        self.optimiser = _AdamW(self.parameters, self.learning_rate, weight_decay, clip, compiled=mode is not None)
        if mode is None:
            self._run: Callable[[Tensor], Tensor] = self._step
            return
        # Without it, every replay of a CUDA graph would first copy the whole of the data.
        for tensor in (*self.parameters, *self.optimiser.tensors, *(x for x in data if x is not None)):
            torch._dynamo.mark_static_address(tensor)
        options: dict[str, Any] = {"mode": mode} if _backend == "inductor" else {}
        self._run = torch.compile(self._step, backend=_backend, fullgraph=True, dynamic=False, **options)

    def step(self, rows: Tensor) -> Tensor:
        """Train on answers `rows` int64[b], where -1 is padding; the loss before the step, float32 [], on the device.

        Each number of rows is compiled anew: keep it the same.
        """
        if self.mode is None:
            return self._run(rows)
        if self.mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        loss = self._run(rows) if len(rows) in self._compiled else self._compile(rows)
        return loss.clone() if self.mode == "reduce-overhead" else loss

    def _compile(self, rows: Tensor) -> Tensor:
        """The first step with so many rows; the settings are not patched at every step because that takes 12 us."""
        with dynamo.patch(trace_autograd_ops=True, recompile_limit=RECOMPILE_LIMIT):
            loss = self._run(rows)
        self._compiled.add(len(rows))
        return loss

    def _step(self, rows: Tensor) -> Tensor:
        batch = gather(self.data, rows, self.module.reads, self.precision)
        with torch.autocast(batch.target.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            predicted = self.module(batch.drafter, batch.target, batch.same_mask)
        loss = study_loss(predicted, batch, self.offset)
        gradients = torch.autograd.grad(loss, self.parameters)
        self.optimiser.update(gradients)
        return loss.detach()


def gather(data: PlainData, rows: Tensor, reads: frozenset[str], precision: Precision) -> PlainData:
    """The answers `rows`, those in `reads` and the target; masks of rows that are padding are empty."""
    real, rows = (rows != PADDING)[:, None], rows.clamp(min=0)

    def taken(states: Tensor) -> Tensor:
        return states[rows].float() if precision == "float32" else states[rows]

    drafter = taken(data.drafter) if data.drafter is not None and "drafter" in reads else None
    return PlainData(drafter, taken(data.target), data.same_mask[rows] & real, data.next_mask[rows] & real)


def study_loss(predicted: Tensor, batch: PlainData, offset: Offset) -> Tensor:
    """The study's loss of predictions [b, t, d], float32 []: see `PlainTrainer`; a mean over no pair is 0."""
    predicted, target = predicted.float(), batch.target.float()
    squares = (predicted - target).square().mean(-1)
    cosines = cosine_similarity(predicted, target, dim=-1, eps=1e-8)
    same = _mean(squares + COSINE_WEIGHT * (1.0 - cosines), batch.same_mask)
    if offset == 0:
        return same
    following = (predicted[:, :-1] - target[:, 1:]).square().mean(-1)
    return 0.5 * same + 0.5 * _mean(following, batch.next_mask[:, :-1])


class _AdamW:
    """`torch.optim.AdamW`'s own function behind a clip by global norm.

    Run by itself it is the fused kernel. Under a compiler it is the `foreach` form, which is compiled into a few
    kernels with the clip in them: the fused kernel stays opaque there and would need another pass over the gradients.
    """

    def __init__(self, values: list[Tensor], rate: Tensor, decay: float, clip: float, *, compiled: bool) -> None:
        self.values, self.rate, self.decay, self.clip, self.compiled = values, rate, decay, clip, compiled
        self.first, self.second = ([torch.zeros_like(x) for x in values] for _ in range(2))
        self.steps = [torch.zeros((), device=rate.device) for _ in values]

    @property
    def tensors(self) -> list[Tensor]:
        """All that a step reads or writes, but for the weights."""
        return [*self.first, *self.second, *self.steps, self.rate]

    @torch.no_grad()
    def update(self, gradients: tuple[Tensor, ...]) -> None:
        """Change the weights in place."""
        norm = get_total_norm(gradients, foreach=True)
        scale = self.clip / norm.clamp(min=self.clip)
        clipped = list(torch._foreach_mul(gradients, scale))  # pyright: ignore[reportPrivateImportUsage]
        adamw(
            self.values,
            clipped,
            self.first,
            self.second,
            [],
            self.steps,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.rate,
            weight_decay=self.decay,
            eps=1e-8,
            maximize=False,
            foreach=self.compiled,
            capturable=self.compiled,
            fused=not self.compiled,
        )


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def _check(module: PlainAdapter, data: PlainData, offset: int, precision: str, mode: str | None) -> None:
    if offset not in (0, 1):
        raise ConfigError(f"offset: must be 0 or 1, got {offset}")
    if precision not in ("bfloat16", "float32"):
        raise ConfigError(f"precision: must be bfloat16 or float32, got {precision!r}")
    if mode not in (None, "default", "reduce-overhead"):
        raise ConfigError(f"mode: must be None, default or reduce-overhead, got {mode!r}")
    if "drafter" in module.reads and data.drafter is None:
        raise ConfigError("data: the adapter reads the drafter's states, and there are none; give them")
