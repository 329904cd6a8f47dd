"""The PyTorch baseline of `train_speed`: the same adapter, data and loss, its whole step compiled. Needs torch."""

import dataclasses
from time import perf_counter
from typing import Any

import jax
import numpy as np
import torch

from torch_bridge.plain_adapters import load_plain, make_plain
from torch_bridge.plain_training import PlainData, PlainTrainer
from xmsd_jax.adapters.kinds import kind_of, make
from xmsd_jax.adapters.torch_names import to_torch
from xmsd_jax.pipeline.made_split import made_source
from xmsd_jax.pipeline.speed_parts import Times, Training, some_order
from xmsd_jax.training.sources import ResidentSource
from xmsd_jax.training.step import DATA, P, placed


def begin() -> None:
    """Forget what was compiled for another adapter; what is compiled after this must be timed before the next call."""
    torch.compiler.reset()


def step_times(config: Any, kind: str, source: ResidentSource, mode: str) -> Times:
    """The baseline in a mode, ready to be timed; of the forms of attention asked for the faster one."""
    forms = config.torch_attention.get(kind, ("matmul",)) if _attends(kind) else ("matmul",)
    made = {form: _ready(config, kind, source, mode, form) for form in forms}
    for timed in made.values():
        timed.turn()
    best = min(made, key=lambda form: made[form].ms[0])
    made[best].about["tried_ms"] = {form: timed.ms[0] for form, timed in made.items()}
    for form, timed in made.items():
        timed.ms.clear()
        if form != best:
            timed.close()
    return made[best]


def _ready(config: Any, kind: str, source: ResidentSource, mode: str, attention: Any) -> Times:
    module = make_plain(kind, config.shape.width, attention=attention).to(_device()).train()
    trainer = _trainer(module, source, kind, mode, precision="bfloat16")
    rows = [torch.from_numpy(rows).to(_device(), torch.int64) for rows in some_order(config)]
    kept: dict[str, Any] = {"trainer": trainer}

    def call() -> None:
        for one in rows:
            kept["loss"] = kept["trainer"].step(one)
        _synchronize()

    def release() -> None:
        kept.update(trainer=None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    start = perf_counter()
    for one in rows[:4]:
        kept["loss"] = trainer.step(one)
    _synchronize()
    compile_s = perf_counter() - start
    call()
    return Times(
        call=call,
        steps=len(rows),
        compile_s=compile_s,
        loss=lambda: float(kept["loss"]),
        release=release,
        about={"attention": attention if _attends(kind) else None},
    )


def parity(config: Any, kind: str) -> dict[str, float]:
    """The largest relative difference of the two loss curves in float32: same start, answers and order, no dropout."""
    shape = dataclasses.replace(config.shape, answers=config.parity_answers)
    small = dataclasses.replace(config, shape=shape, steps=1)
    source = made_source(shape, config.engine.mesh(), drafter=kind_of(kind).facts.inputs != "target")
    order = _parity_order(config)
    ours = _our_curve(small, kind, source, order)
    torch.set_float32_matmul_precision("highest")
    module = make_plain(kind, shape.width, dropout=0.0)
    load_plain(module, to_torch(make(kind, shape.width), kind))
    trainer = _trainer(module.to(_device()).train(), source, kind, "eager", precision="float32")
    rows = [torch.from_numpy(rows).to(_device(), torch.int64) for rows in order]
    theirs = np.array([float(trainer.step(one)) for one in rows])
    apart = np.abs(ours - theirs) / np.abs(theirs)
    return {"worst": float(apart.max()), "steps": len(order), "first": float(theirs[0]), "last": float(theirs[-1])}


def _our_curve(config: Any, kind: str, source: ResidentSource, order: np.ndarray) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        training = Training(config, kind, dropout=0.0, compute=np.dtype("float32"))
        tops, counts = jax.device_get(training.steps(source.data, placed(order, training.mesh, P(None, DATA))))
    weights = np.asarray(training.objective.weights)
    return (tops.astype(np.float64) / np.maximum(counts, 1.0) * weights).sum(-1)


def _parity_order(config: Any) -> np.ndarray:
    rng = np.random.default_rng(4)
    drawn = [rng.permutation(config.parity_answers)[: config.batch] for _ in range(config.parity_steps)]
    return np.stack(drawn).astype(np.int32)


def _trainer(module: Any, source: ResidentSource, kind: str, mode: str, *, precision: Any) -> PlainTrainer:
    data: Any = source.data
    drafter = None if data.drafter is None else torch.from_dlpack(data.drafter)
    same, following = (torch.from_numpy(np.array(x)).to(_device()) for x in (data.same_mask, data.next_mask))
    return PlainTrainer(
        module,
        PlainData(drafter, torch.from_dlpack(data.target), same, following),
        offset=kind_of(kind).facts.offset,
        learning_rate=1e-3,
        precision=precision,
        mode=None if mode == "eager" else mode,  # pyright: ignore[reportArgumentType]
    )


def _attends(kind: str) -> bool:
    return kind not in ("L1", "L2", "L3")


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
