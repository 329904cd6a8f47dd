"""What `train_speed` measures on the JAX side, part by part. Times are of whole calls, device synchronised, warm."""

import dataclasses
import multiprocessing
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmsd_jax.adapters.kinds import kind_of, make
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.data.store import Store
from xmsd_jax.decoding.anchors import adapter_anchors
from xmsd_jax.pipeline.made_split import made_index, made_source, write_made_store
from xmsd_jax.training.engine import Engine, matmul_rate, step_flops
from xmsd_jax.training.loop import epoch_order, joined
from xmsd_jax.training.losses import Objective, Sums
from xmsd_jax.training.recipe import Recipe
from xmsd_jax.training.sources import ResidentSource, Source, StreamSource
from xmsd_jax.training.state import Hyper, Skeleton, begin
from xmsd_jax.training.step import DATA, P, make_steps, picked, placed
from xmsd_jax.training.sweep_step import make_member_steps, stacked

SMALL_VOCABULARY = 64
"""Of the head where the study's loss does not read it."""


@dataclass(kw_only=True, eq=False)
class Times:
    """A call that trains some steps, and the milliseconds a step of every turn."""

    call: Callable[[], Any]
    steps: int
    compile_s: float
    flops: float = 0.0
    loss: Callable[[], float] = lambda: float("nan")
    release: Callable[[], None] = lambda: None
    about: dict[str, Any] = field(default_factory=dict)
    ms: list[float] = field(default_factory=list)

    def turn(self) -> None:
        """Time one call."""
        start = perf_counter()
        self.call()
        self.ms.append((perf_counter() - start) / self.steps * 1e3)

    def close(self) -> None:
        """Let go of the device memory."""
        self.release()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"ms": self.ms, "compile_s": self.compile_s, "flops": self.flops, "loss": self.loss(), **self.about}


def chip(engine: Engine) -> dict[str, float]:
    """What the device does at best: a large matrix product, and a copy, counting bytes read and written."""
    size = 1 << (29 if jax.default_backend() == "gpu" else 22)
    x = jnp.ones(size // 4, jnp.float32)
    copy = jax.jit(lambda x: jax.lax.fori_loop(0, 10, lambda i, x: x + 1, x))
    jax.block_until_ready(copy(x))
    start = perf_counter()
    jax.block_until_ready(copy(x))
    seconds = perf_counter() - start
    return {"matmul_tflops": matmul_rate(engine.dtype) / 1e12, "copy_gbs": 10 * 2 * x.nbytes / seconds / 1e9}


@dataclass(eq=False)
class Training:
    """One adapter in training, by pieces of an epoch."""

    config: Any
    kind: str
    dropout: float = 0.1
    learning_rate: float = 1e-3
    compute: Any = None

    def __post_init__(self) -> None:
        """Initialise adapter and program."""
        config = self.config
        self.mesh = config.engine.mesh()
        self.recipe = Recipe(batch=config.batch, dropout=self.dropout, learning_rate=self.learning_rate)
        self.objective = Objective(name="study", offset=kind_of(self.kind).facts.offset)
        skeleton, params = Skeleton.split(make(self.kind, config.shape.width))
        self.skeleton, self.params = skeleton, {name: np.asarray(value) for name, value in params.items()}
        self.compute = config.engine.dtype if self.compute is None else self.compute
        self.head = placed(small_head(config.shape.width, self.compute), self.mesh)
        self.hyper = placed(Hyper.of(self.recipe), self.mesh)
        self.rate = placed(np.float32(self.learning_rate), self.mesh)
        self.program = make_steps(skeleton, self.objective, self.recipe, self.mesh, compute=self.compute)
        self.state = placed(begin(params), self.mesh)
        self.sums: Any = None

    def steps(self, data: Any, piece: Any) -> Any:
        """Train on a piece; sums of its steps."""
        self.state, self.sums = self.program(self.state, data, self.head, piece, self.rate, self.hyper)
        return self.sums

    def epoch(self, source: Source, number: int) -> float:
        """Train an epoch as the loop does; answers a second."""
        rows = np.arange(len(source.index))
        start = perf_counter()
        joined([self.steps(data, piece) for data, piece in source.epoch(epoch_order(rows, self.recipe, number))])
        return len(rows) / (perf_counter() - start)

    def loss(self) -> float:
        """Of the last step."""
        sums = jax.device_get(self.sums)
        return float(self.objective.value(Sums(*(jnp.asarray(part[-1]) for part in sums))))

    @property
    def flops(self) -> float:
        """Model FLOPs of a step."""
        shapes = {name: value.shape for name, value in self.params.items()}
        length = self.config.shape.positions
        return step_flops(shapes, self.config.batch * length, length)


def small_head(width: int, dtype: Any) -> TokenHead:
    """A head that the study's loss never reads."""
    return TokenHead.of(jnp.zeros((SMALL_VOCABULARY, width), dtype), SMALL_VOCABULARY)


def some_order(config: Any) -> np.ndarray:
    """Rows of one timed call, int32[steps, b]."""
    rows = np.random.default_rng(0).permutation(config.shape.answers)[: config.steps * config.batch]
    return rows.reshape(config.steps, config.batch).astype(np.int32)


def step_times(config: Any, training: Training, source: ResidentSource) -> Times:
    """Ours, ready to be timed: `config.steps` steps a call on the resident split."""
    order = placed(some_order(config), training.mesh, P(None, DATA))
    start = perf_counter()
    jax.block_until_ready(training.steps(source.data, order))
    return Times(
        call=lambda: jax.block_until_ready(training.steps(source.data, order)),
        steps=config.steps,
        compile_s=perf_counter() - start,
        flops=training.flops,
        loss=training.loss,
    )


def resident_epoch(config: Any, training: Training, source: ResidentSource) -> dict[str, Any]:
    """Answers a second of an epoch as the loop trains it, and of steps on batches that lie ready, if that is asked."""
    training.epoch(source, 0)
    pure = pure_rate(training, source) if training.kind in config.pure_kinds else None
    epochs = [training.epoch(source, number) for number in range(1, config.repeats + 1)]
    return {"epoch": float(np.median(epochs)), "slowest": min(epochs), "pure": pure}


def pure_rate(training: Training, source: Source, ready: int = 8) -> float:
    """Answers a second of steps alone: on batches that were made before."""
    config = training.config
    split, _ = next(source.epoch(np.zeros((1, config.batch), np.int32)))
    order = placed(some_order(config)[:ready], training.mesh)
    batches = jax.jit(lambda split, order: jax.lax.map(lambda rows: picked(split, rows, training.compute), order))
    batches = jax.block_until_ready(batches(split, order))
    jax.block_until_ready(training.steps(None, batches))
    times = []
    for _ in range(config.repeats):
        start = perf_counter()
        for _ in range(5):
            sums = training.steps(None, batches)
        jax.block_until_ready(sums)
        times.append((perf_counter() - start) / 5)
    return len(order) * config.batch / float(np.median(times))


def stream_epoch(config: Any, store: Path) -> dict[str, float]:
    """Answers a second of epochs that read their answers from a store, in a process of its own.

    The store is written first, so its pages are in memory. `host_gb`: the most memory that the process held.
    """
    if not (store / "texts.json").exists():
        write_made_store(store, config.shape)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_stream_epochs, (config, store))


def _stream_epochs(config: Any, store: Path) -> dict[str, float]:
    mesh = config.engine.mesh()
    training = Training(config, config.stream_kind)
    pairing = "synced" if kind_of(config.stream_kind).facts.inputs != "target" else None
    source = StreamSource(
        index=made_index(config.shape),
        store=Store.open(store),
        pairing=pairing,
        mesh=mesh,
        steps=config.engine.stream_steps,
    )
    ready = dataclasses.replace(config.shape, answers=config.batch * 8)
    small = Training(dataclasses.replace(config, shape=ready, steps=8), config.stream_kind)
    pure = pure_rate(small, made_source(ready, mesh, drafter=pairing is not None))
    del small
    first, *later = (training.epoch(source, number) for number in range(config.repeats))
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"pure": pure, "first": first, "later": float(np.median(later)), "host_gb": host}


def sweep_speed(config: Any) -> dict[str, float]:
    """Milliseconds a step of a sweep and of a single run, and seconds of whole trainings with start-up."""
    mesh, members = config.engine.mesh(), config.sweep_members
    source = made_source(config.shape, mesh, drafter=kind_of(config.sweep_kind).facts.inputs != "target")
    start = perf_counter()
    single: Any = None
    for member in range(members):
        single = Training(config, config.sweep_kind, learning_rate=1e-3 * (member + 1))
        for number in range(config.sweep_epochs):
            single.epoch(source, number)
    single_s = perf_counter() - start
    start = perf_counter()
    together = _Together(config, mesh)
    for number in range(config.sweep_epochs):
        together.epoch(source, number)
    together_s = perf_counter() - start
    times: dict[str, list[float]] = {"single": [], "together": []}
    steps = len(epoch_order(np.arange(len(source.index)), single.recipe, 0))
    for number in range(config.repeats):
        for name, one in (("single", single), ("together", together)):
            start = perf_counter()
            one.epoch(source, number)
            times[name].append((perf_counter() - start) / steps * 1e3)
    return {
        "members": members,
        "single_s": single_s,
        "together_s": together_s,
        **{f"{name}_ms": float(np.median(values)) for name, values in times.items()},
    }


class _Together:
    """A sweep's members in training."""

    def __init__(self, config: Any, mesh: Any) -> None:
        count = config.sweep_members
        one = Training(config, config.sweep_kind)
        self.recipe, self.head = one.recipe, one.head
        adapters = [make(config.sweep_kind, config.shape.width, seed=seed) for seed in range(count)]
        self.state = stacked([begin(Skeleton.split(adapter)[1]) for adapter in adapters], mesh)
        self.hyper = stacked([Hyper.of(self.recipe)] * count, mesh)
        self.rates = placed(np.array([1e-3 * (i + 1) for i in range(count)], np.float32), mesh, P(DATA))
        self.alive = placed(np.ones(count, bool), mesh, P(DATA))
        self.program = make_member_steps(one.skeleton, one.objective, mesh, compute=one.compute, dropout=True)

    def epoch(self, source: Source, number: int) -> None:
        """Train all members for an epoch."""
        parts = []
        for data, piece in source.epoch(epoch_order(np.arange(len(source.index)), self.recipe, number), cut=False):
            self.state, self.alive, sums = self.program(
                self.state, self.alive, data, self.head, piece, self.rates, self.hyper
            )
            parts.append(sums)
        jax.device_get(parts)


def judge_speed(config: Any) -> dict[str, float]:
    """Seconds of rolling an adapter out at every anchor of a resident split and walking the answers, compiled."""
    kind = config.judge_kind
    shape = dataclasses.replace(config.shape, answers=config.judge_answers)
    pairs = made_source(shape, config.engine.mesh(), drafter=kind_of(kind).facts.inputs != "target").pairs()
    weight = jax.random.normal(jax.random.key(3), (shape.vocabulary, shape.width), config.engine.dtype)
    head = TokenHead.of(weight, shape.vocabulary)
    adapter = make(kind, shape.width)
    seconds = []
    for _ in range(2):
        start = perf_counter()
        anchors = adapter_anchors(
            adapter,
            head,
            pairs,
            mode="synced",
            gamma=config.judge_gamma,
            compute=config.engine.dtype,
            batch=config.batch,
        )
        walk = anchors.walk(config.judge_gamma)
        seconds.append(perf_counter() - start)
    tau = float(walk.emitted.sum() / walk.iterations.sum())
    return {"seconds": seconds[0], "again": seconds[1], "answers": shape.answers, "tau": tau}
