"""Stage `sweep`: a training for every point of a grid; equal shapes share a compiled program, the best is exported."""

import dataclasses
import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from xmsd_jax import __version__
from xmsd_jax.adapters.files import save_adapter
from xmsd_jax.adapters.kinds import kind_of, make
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.config import ConfigError, UserError, dump
from xmsd_jax.data.store import Store
from xmsd_jax.metrics.counted import Estimate, ratio_of_sums
from xmsd_jax.pipeline.train import MODES, TrainConfig, passport, training_sources, validation_store
from xmsd_jax.runs import Row, Run, provenance, read_results, stage_key, write_results, write_text
from xmsd_jax.training.history import Epoch, columns
from xmsd_jax.training.losses import Objective
from xmsd_jax.training.sources import Source
from xmsd_jax.training.sweep import FREE, Judgement, Member, train_together

ADAPTER, BEST = "adapter", "best"
DRAWS = 2000
LOSS = "validation_loss"


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A grid of trainings.

    base: what all members share. grid: dotted field of base -> its values, such as recipe.learning_rate: [1e-3, 3e-3];
    any numeric field, seeds too. Every combination is a member. Those that differ in learning_rate,
    final_learning_rate, cosine_epochs, weight_decay, clip, dropout, token_weight, seed, epochs or patience alone are
    trained in one program; others one program after the other.
    """

    base: TrainConfig
    grid: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ConfigError for an empty grid, and fields that are unknown, not numbers, or given impossible values."""
        if not self.grid or not all(self.grid.values()):
            raise ConfigError("grid: give at least one field with at least one value, e.g. recipe.seed: [0, 1]")
        if "recipe.token_weight" in self.grid and self.base.recipe.select == "loss":
            raise ConfigError(
                "grid: losses with different token_weight do not compare; set base.recipe.select: accepted"
            )
        self.members()

    def members(self) -> list[tuple[dict[str, float], TrainConfig]]:
        """What each member sets, and its config."""
        points = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        return [(point, _with(self.base, point)) for point in points]


def run(config: SweepConfig, run_dir: Path, fresh: bool = False) -> Path:
    """Train all members (finished groups are reused), print the ranked table, export the best to `run_dir/best`.

    Raises:
        UserError: stores that do not fit, damaged states, a grid of which every member died.
    """
    run = Run.open(run_dir, config)
    config.base.engine.join()
    store = Store.open(config.base.store)
    groups = grouped(config)
    rows: list[Row] = []
    for number, group in enumerate(groups):
        rows += _group(run, f"group_{number + 1}_of_{len(groups)}", group, store, fresh)
    ranked = ranking(rows, config.base)
    write_results(run.path, ranked, provenance() | {"config": dump(config)})
    print(table(ranked))
    winner = ranked[0]
    if winner.value is None:
        raise UserError("grid: the loss of every member was not finite; take smaller learning rates")
    best = run.path / BEST
    _copy(run.path / winner.settings["folder"], best)
    print(f"best: {winner.row} -> {best}", flush=True)
    return best


def grouped(config: SweepConfig) -> list[list[tuple[dict[str, float], TrainConfig]]]:
    """Members by program: they agree in all but the free fields of the recipe."""
    groups: dict[str, list[tuple[dict[str, float], TrainConfig]]] = {}
    for point, member in config.members():
        same = {name: getattr(config.base.recipe, name) for name in FREE}
        key = json.dumps(dump(replace(member, recipe=replace(member.recipe, **same))), sort_keys=True, default=str)
        groups.setdefault(key, []).append((point, member))
    return list(groups.values())


def ranking(rows: Sequence[Row], base: TrainConfig) -> list[Row]:
    """The best first; members that died last."""
    sign = 1.0 if base.recipe.select == "loss" else -1.0

    def order(row: Row) -> tuple[bool, float, float]:
        if row.value is None:
            return True, 0.0, 0.0
        return False, sign * row.value, row.settings[LOSS]

    ranked = sorted(rows, key=order)
    return [replace(row, settings={"rank": rank, **row.settings}) for rank, row in enumerate(ranked, 1)]


def table(rows: Sequence[Row]) -> str:
    """The ranking, one line a member."""
    width = max(len(row.row) for row in rows)
    lines = [f"{'rank':>4}  {'member':{width}}  {rows[0].metric} (95 % over sequences), validation loss, epoch kept"]
    for row in rows:
        at = row.settings
        if row.value is None:
            lines.append(f"{at['rank']:>4}  {row.row:{width}}  dead: loss not finite in {at['died']}")
            continue
        spread = "no interval" if row.low is None else f"{row.low:.4f} to {row.high:.4f}"
        lines.append(
            f"{at['rank']:>4}  {row.row:{width}}  {row.value:.4f} ({spread}), {at[LOSS]:.4f}, "
            f"{at['epoch']} of {at['epochs']}"
        )
    return "\n".join(lines)


def _group(
    run: Run, name: str, group: list[tuple[dict[str, float], TrainConfig]], store: Store, fresh: bool
) -> list[Row]:
    configs = [member for _, member in group]
    held_out = validation_store(configs[0].validation, store)
    prints = [opened.manifest.fingerprint for opened in (store, held_out) if opened is not None]
    placed = [replace(config, store=Path(), validation=None) for config in configs]
    key = stage_key(SweepConfig(base=placed[0], grid={"recipe.seed": (0,)}), __version__, *prints, *map(str, placed))
    with run.stage(name, key, fresh) as stage:
        if not stage.reused:
            sources = training_sources(configs[0], store, held_out)
            members = _train(name, configs, store, sources, run, [point for point, _ in group])
            sequences = sources[1].index.sequence
            rows = [
                _finished(stage.path / f"member_{i + 1}", point, config, member, store, sequences)
                for i, ((point, config), member) in enumerate(zip(group, members, strict=True))
            ]
            write_results(stage.path, rows, provenance())
    return [
        replace(row, settings={**row.settings, "folder": f"{name}/{row.settings['folder']}"})
        for row in read_results(stage.path)[0]
    ]


def _train(
    name: str,
    configs: list[TrainConfig],
    store: Store,
    sources: tuple[Source, Source],
    run: Run,
    points: list[dict[str, float]],
) -> list[Member]:
    first, (training, validation) = configs[0], sources
    head = TokenHead.of(jnp.asarray(store.head().astype(np.float32)), store.manifest.vocabulary["real"])
    width = store.manifest.width

    def on_epoch(member: int, epoch: Epoch) -> None:
        values = asdict(epoch)
        run.log(sweep=told(points[member]), **{first.accepted: values.pop("accepted")}, **values)

    return train_together(
        [make(config.kind, width, seed=config.recipe.seed, blocks=config.blocks) for config in configs],
        [config.recipe for config in configs],
        training=training,
        validation=validation,
        head=head,
        mode=MODES[first.pairing],
        engine=first.engine,
        mesh=first.engine.mesh(),
        on_epoch=on_epoch,
        label=f"sweep {first.title}, {name.replace('_', ' ')}: {len(configs)} members",
    )


def _finished(
    folder: Path, point: dict[str, float], config: TrainConfig, member: Member, store: Store, sequences: np.ndarray
) -> Row:
    """Write a member's adapter and history; its row, with the interval of what it was chosen by."""
    by_loss = config.recipe.select == "loss"
    metric = LOSS if by_loss else config.accepted
    settings: dict[str, Any] = {**point, "folder": folder.name, "kind": config.kind}
    write_text(folder / "history.json", json.dumps(columns(member.epochs, config.accepted), indent=1) + "\n")
    if member.died is not None:
        return Row(row=told(point), metric=metric, value=None, settings={**settings, "died": member.died})
    kept, judged = member.kept, member.judgement
    assert kept is not None, "a member that lives has an epoch"
    assert judged is not None
    choice = {"epoch": kept.epoch, "by": metric, "value": kept.validation_loss if by_loss else kept.accepted}
    save_adapter(folder / ADAPTER, member.adapter, passport(config, store, choice))
    found = loss_estimate(config, judged, sequences) if by_loss else _accepted(judged, sequences)
    return Row(
        row=told(point),
        metric=metric,
        value=found.value,
        low=found.low,
        high=found.high,
        n=found.n,
        settings={
            **settings,
            LOSS: kept.validation_loss,
            config.accepted: kept.accepted,
            "epoch": kept.epoch,
            "epochs": len(member.epochs),
        },
    )


def told(point: Mapping[str, float]) -> str:
    """A member in words: what it sets."""
    return ", ".join(f"{name.removeprefix('recipe.')} {value:g}" for name, value in point.items())


def loss_estimate(config: TrainConfig, judged: Judgement, sequences: np.ndarray) -> Estimate:
    """The validation loss with a bootstrap interval over sequences; it is a sum of two ratios."""
    objective = Objective(name=config.recipe.loss, offset=kind_of(config.kind).facts.offset)
    names, which = np.unique(sequences, return_inverse=True)
    sums = [np.stack([np.bincount(which, part[:, i], len(names)) for i in range(2)], -1) for part in judged.sums]
    values = _loss(objective, *(part.sum(0)[None] for part in sums))
    if len(names) < 2:
        return Estimate(value=float(values[0]), n=len(sequences), clusters=len(names))
    drawn = np.random.default_rng(0).integers(len(names), size=(DRAWS, len(names)))
    low, high = np.quantile(_loss(objective, *(part[drawn].sum(1) for part in sums)), [0.025, 0.975])
    return Estimate(value=float(values[0]), low=float(low), high=float(high), n=len(sequences), clusters=len(names))


def _loss(objective: Objective, tops: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return (tops / np.maximum(counts, 1.0) * np.asarray(objective.weights)).sum(-1)


def _accepted(judged: Judgement, sequences: np.ndarray) -> Estimate:
    return ratio_of_sums(judged.accepted, judged.iterations, sequences=sequences)


def _with(base: TrainConfig, point: Mapping[str, float]) -> TrainConfig:
    """The config with these values at dotted fields."""
    for name, value in point.items():
        base = _replaced(base, name.split("."), value, name)
    return base


def _replaced(config: Any, path: list[str], value: float, name: str) -> Any:
    fields = {f.name for f in dataclasses.fields(config)}
    if path[0] not in fields:
        raise ConfigError(f"grid: {name}: no such field; known: {', '.join(sorted(fields))}")
    before = getattr(config, path[0])
    if len(path) > 1:
        if not dataclasses.is_dataclass(before):
            raise ConfigError(f"grid: {name}: {path[0]} has no fields of its own")
        return replace(config, **{path[0]: _replaced(before, path[1:], value, name)})
    whole = name == "blocks" or isinstance(before, int)
    if isinstance(before, bool) or not (whole or isinstance(before, float)):
        raise ConfigError(f"grid: {name}: is not a number; a grid goes over numbers")
    if whole and not float(value).is_integer():
        raise ConfigError(f"grid: {name}: takes whole numbers, got {value}")
    return replace(config, **{path[0]: int(value) if whole else float(value)})


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
