"""The PyTorch side of `train_speed`: the same adapter, data and loss, its whole step compiled."""

import dataclasses
from time import perf_counter
from typing import Any

import jax
import numpy as np

from xmsd_jax.adapters.kinds import kind_of, make
from xmsd_jax.adapters.torch_names import to_torch
from xmsd_jax.pipeline.made_split import made_source
from xmsd_jax.pipeline.speed_parts import Times, Training, some_order
from xmsd_jax.training.sources import ResidentSource
from xmsd_jax.training.step import DATA, P, placed

WARM_STEPS = 4
PARITY = 1e-4


def begin() -> None:
    """Forget what was compiled for another adapter; what is compiled after this must be timed before the next call."""
    from torch_bridge.plain_speed import forget_compiled  # torch only where a baseline is asked for

    forget_compiled()


def baseline_times(config: Any, kind: str, source: ResidentSource, mode: str) -> Times:
    """The baseline in a mode, ready to be timed; of the forms of attention asked for the faster one."""
    attends = kind not in ("L1", "L2", "L3")
    forms = config.torch_attention.get(kind, ("matmul",)) if attends else ("matmul",)
    made = {form: _ready(config, kind, source, mode, form) for form in forms}
    for timed in made.values():
        timed.turn()
    best = min(made, key=lambda form: made[form].ms[0])
    made[best].about.update(
        attention=best if attends else None, tried_ms={form: timed.ms[0] for form, timed in made.items()}
    )
    for form, timed in made.items():
        timed.ms.clear()
        if form != best:
            timed.close()
    return made[best]


def parity(config: Any, kind: str) -> dict[str, float]:
    """How far the two loss curves are apart in float32: same start, answers and order, no dropout.

    Relative differences: `worst` of all steps, `within` how many of the first stay within 1e-4. `torch_worst` and
    `torch_within` are those of the baseline against itself, with the answers of each batch in reversed order: the same
    sums, rounded otherwise. Where that grows as well, training magnifies rounding, whoever computes it.
    """
    shape = dataclasses.replace(config.shape, answers=config.parity_answers)
    small = dataclasses.replace(config, shape=shape, steps=1)
    source = made_source(shape, config.engine.mesh(), drafter=kind_of(kind).facts.inputs != "target")
    order = _parity_order(config)
    ours = _our_curve(small, kind, source, order)
    theirs, again = (_their_curve(small, kind, source, rows) for rows in (order, order[:, ::-1]))
    found: dict[str, float] = {"steps": len(order), "first": float(theirs[0]), "last": float(theirs[-1])}
    for prefix, curve in (("", ours), ("torch_", again)):
        apart = np.abs(curve - theirs) / np.abs(theirs)
        far = np.flatnonzero(apart > PARITY)
        found |= {f"{prefix}worst": float(apart.max()), f"{prefix}within": int(far[0]) if len(far) else len(order)}
    return found


def _their_curve(config: Any, kind: str, source: ResidentSource, order: np.ndarray) -> np.ndarray:
    start = to_torch(make(kind, config.shape.width), kind)
    run = _run(config, kind, source, mode="eager", precision="float32", dropout=0.0, state=start)
    curve = run.losses(run.put(np.ascontiguousarray(order)))
    run.close()
    return curve


def _ready(config: Any, kind: str, source: ResidentSource, mode: str, attention: str) -> Times:
    run = _run(config, kind, source, mode=mode, attention=attention)
    batches = run.put(some_order(config))
    start = perf_counter()
    run.train(batches[:WARM_STEPS])
    compile_s = perf_counter() - start
    run.train(batches)
    return Times(
        call=lambda: run.train(batches),
        steps=len(batches),
        compile_s=compile_s,
        loss=lambda: run.loss,
        release=run.close,
    )


def _run(config: Any, kind: str, source: ResidentSource, *, mode: str, **settings: Any) -> Any:
    from torch_bridge.plain_speed import PlainRun

    data = source.data
    return PlainRun(
        kind,
        width=config.shape.width,
        drafter=data.drafter,
        target=data.target,
        same_mask=np.asarray(data.same_mask),
        next_mask=np.asarray(data.next_mask),
        offset=kind_of(kind).facts.offset,
        mode=None if mode == "eager" else mode,  # pyright: ignore[reportArgumentType]
        **settings,
    )


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
