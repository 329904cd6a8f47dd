"""Stage `train`: one adapter from one store, exported with its passport, its curves beside it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from xmsd_jax import __version__
from xmsd_jax.adapters.files import Passport, save_adapter
from xmsd_jax.adapters.interface import Pairing
from xmsd_jax.adapters.kinds import kind_of, make
from xmsd_jax.adapters.rollout import Mode
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.config import ConfigError, UserError, dump
from xmsd_jax.data.batches import read_index, split_by_sequence
from xmsd_jax.data.store import Store
from xmsd_jax.pipeline.rows import drafter_name
from xmsd_jax.runs import Run, provenance, stage_key, write_text
from xmsd_jax.training.checkpoints import Checkpoints
from xmsd_jax.training.curves import Curves
from xmsd_jax.training.engine import Engine
from xmsd_jax.training.history import Epoch, columns, rows_of
from xmsd_jax.training.loop import ACCEPTED, Trained, check_pairs, train
from xmsd_jax.training.losses import Objective
from xmsd_jax.training.recipe import Recipe
from xmsd_jax.training.sources import Source, store_source

STAGE = "train"
ADAPTER, HISTORY, CHECKPOINTS, TENSORBOARD = "adapter", "history.json", "checkpoints", "tensorboard"
SAME_PAIR = ("models", "revisions", "quantisation", "norm_slot", "vocabulary", "head_fingerprint", "width")
"""Fields of the manifest in which the stores of training and validation must agree."""
MODES: dict[str | None, Mode] = {None: "synced", "index": "own", "synced": "synced"}
"""Pairing in training -> drafter states in drafting; a kind without drafter states reads none in either mode."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is trained, on what.

    store: a split's store of `xmsd extract`. kind: L1, L2, L3, L4, L5, B1, L5F (`xmsd adapters` lists them); blocks: of
    L1, L2, L3, null for the kind's own number. pairing: drafter states of its own answer ("index", the study's and the
    default) or after the target's text ("synced", L5 and L5F); null for B1, which reads the target alone. validation: a
    store of other sequences, such as the validation split; null takes validation_share of the training store's.
    """

    store: Path
    kind: str
    pairing: Pairing | None = None
    blocks: int | None = None
    validation: Path | None = None
    validation_share: float = 0.1
    recipe: Recipe = field(default_factory=Recipe)
    engine: Engine = field(default_factory=Engine)

    def __post_init__(self) -> None:
        """Raise ConfigError for settings that the kind does not have; fill in the default pairing."""
        kind = kind_of(self.kind)
        if self.blocks is not None and (kind.blocks is None or self.blocks < 1):
            most = "at least 1" if kind.blocks else "none"
            raise ConfigError(f"blocks: {self.kind} takes {most}, got {self.blocks}; set it to null")
        if self.pairing is not None and kind.facts.inputs == "target":
            raise ConfigError(f"pairing: {self.kind} reads no drafter states, got {self.pairing!r}; set it to null")
        if self.pairing == "synced" and kind.facts.offset == 0:
            raise ConfigError(
                f"pairing: {self.kind} drafts before the target has said anything, so it learns from index pairs; set "
                "it to index"
            )
        if self.pairing is None and kind.facts.inputs != "target":
            object.__setattr__(self, "pairing", "index")
        if not 0 < self.validation_share < 1:
            raise ConfigError(f"validation_share: must lie between 0 and 1, got {self.validation_share}")
        Objective(name=self.recipe.loss, offset=kind.facts.offset)

    @property
    def accepted(self) -> str:
        """What accepted tokens are called for the kind: "n_free" or "tau"."""
        return ACCEPTED[kind_of(self.kind).facts.offset]

    @property
    def title(self) -> str:
        """What the adapter is called in tables."""
        return drafter_name(self.kind, self.pairing)


def run(config: TrainConfig, run_dir: Path, fresh: bool = False) -> Path:
    """Train (or reuse, or continue) `run_dir/train/adapter`; returns that folder.

    Raises:
        UserError: stores that do not fit, damaged states, a loss that is not finite, a damaged checkpoint.
    """
    config.engine.join()
    if config.engine.process:
        run_dir = run_dir / f"process_{config.engine.process}"
    return train_adapter(config, Run.open(run_dir, config), fresh=fresh)


def train_adapter(config: TrainConfig, run: Run, *, name: str = STAGE, fresh: bool = False) -> Path:
    """The stage `name` inside an open run: the adapter's folder, beside it history.json and TensorBoard's events.

    A stage of the same config and stores is reused; one that was cut off goes on at its last checkpoint, to the same
    bits. Raises as `run`.
    """
    store = Store.open(config.store)
    held_out = validation_store(config.validation, store)
    key = _key(config, store, held_out)
    with run.stage(name, key, fresh) as stage:
        if not stage.reused:
            if config.engine.processes > 1:
                trained = _train(config, store, held_out, None, run, stage.path)
            else:
                with Checkpoints(stage.path / CHECKPOINTS, key) as checkpoints:
                    trained = _train(config, store, held_out, checkpoints, run, stage.path)
            _export(config, store, trained, stage.path)
    # Only now: until the stage is marked as done, they are what it continues from.
    shutil.rmtree(stage.path / CHECKPOINTS, ignore_errors=True)
    print(_told(config, stage.path), flush=True)
    return stage.path / ADAPTER


def training_sources(config: TrainConfig, store: Store, held_out: Store | None) -> tuple[Source, Source]:
    """Answers to learn from and to validate on, of sequences that do not overlap."""
    mesh = config.engine.mesh()
    inputs = kind_of(config.kind).facts.inputs
    training = read_index(store, inputs=inputs, pairing=config.pairing)
    if held_out is None:
        training, validation = split_by_sequence(training, config.validation_share, config.recipe.order_seed)
    else:
        validation = read_index(held_out, inputs=inputs, pairing=config.pairing)
    check_pairs(kind_of(config.kind).facts, training, validation)
    source = partial(store_source, pairing=config.pairing, engine=config.engine, mesh=mesh)
    return source(store, training), source(held_out or store, validation)


def _train(
    config: TrainConfig, store: Store, held_out: Store | None, checkpoints: Checkpoints | None, run: Run, folder: Path
) -> Trained:
    training, validation = training_sources(config, store, held_out)
    head = TokenHead.of(jnp.asarray(store.head().astype(np.float32)), store.manifest.vocabulary["real"])
    adapter = make(config.kind, store.manifest.width, seed=config.recipe.seed, blocks=config.blocks)
    with Curves(folder / TENSORBOARD, config.accepted) as curves:

        def on_epoch(epoch: Epoch) -> None:
            curves.write(epoch)
            values = asdict(epoch)
            run.log(train=config.title, **{config.accepted: values.pop("accepted")}, **values)
            if epoch.epoch % max(config.recipe.epochs // 10, 1) == 0:
                print(f"{config.title}, epoch {epoch.epoch}: {_numbers(epoch, config.accepted)}", flush=True)

        return train(
            adapter,
            training=training,
            validation=validation,
            head=head,
            mode=MODES[config.pairing],
            recipe=config.recipe,
            engine=config.engine,
            checkpoints=checkpoints,
            on_epoch=on_epoch,
            label=f"train {config.title}",
        )


def _export(config: TrainConfig, store: Store, trained: Trained, folder: Path) -> None:
    by = config.accepted if config.recipe.select == "accepted" else "validation_loss"
    kept = trained.kept
    choice = {"epoch": kept.epoch, "by": by, "value": kept.accepted if by == config.accepted else kept.validation_loss}
    content = {
        "kind": config.kind,
        "pairing": config.pairing,
        "title": config.title,
        "accepted": config.accepted,
        "chosen": choice,
        **columns(trained.epochs, config.accepted),
    }
    write_text(folder / HISTORY, json.dumps(content, indent=1) + "\n")
    save_adapter(folder / ADAPTER, trained.adapter, passport(config, store, choice))


def passport(config: TrainConfig, store: Store, choice: Mapping[str, Any]) -> Passport:
    """What an adapter is and what it was trained on; `choice`: epoch, metric and value that it was kept for."""
    manifest = store.manifest
    return Passport(
        kind=config.kind,
        width=manifest.width,
        blocks=config.blocks or kind_of(config.kind).blocks,
        pairing=config.pairing,
        vocabulary=manifest.vocabulary["real"],
        head_fingerprint=manifest.head_fingerprint,
        revisions=dict(manifest.revisions),
        store=manifest.fingerprint,
        training={**choice, "recipe": dump(config.recipe), "software": provenance()["versions"]},
    )


def validation_store(path: Path | None, training: Store) -> Store | None:
    """The store of validation answers, if there is one; UserError where it is of another pair."""
    if path is None:
        return None
    stored = training.manifest.to_json()
    return Store.open(path, expect={name: stored[name] for name in SAME_PAIR})


def _key(config: TrainConfig, store: Store, held_out: Store | None) -> str:
    """What the adapter depends on: the stores' content, not where they lie."""
    placed = replace(
        config,
        store=Path(),
        validation=None if config.validation is None else Path(),
        engine=Engine(compute=config.engine.compute),
    )
    prints = [opened.manifest.fingerprint for opened in (store, held_out) if opened is not None]
    return stage_key(placed, __version__, *prints)


def _numbers(epoch: Epoch, accepted: str) -> str:
    return (
        f"{accepted} {epoch.accepted:.3f}, validation loss {epoch.validation_loss:.4f}, training loss "
        f"{epoch.training_loss:.4f}"
    )


def _told(config: TrainConfig, folder: Path) -> str:
    """The kept epoch and its numbers, read from what was written."""
    try:
        history = json.loads((folder / HISTORY).read_text(encoding="utf-8"))
        choice, epochs = history["chosen"], rows_of(history, config.accepted)
        kept = next(epoch for epoch in epochs if epoch.epoch == choice["epoch"])
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise UserError(f"{folder / HISTORY}: cannot be read ({error}); train again with --fresh") from None
    return (
        f"{config.title}: epoch {kept.epoch} of {len(epochs)}, chosen by {choice['by']}: "
        f"{_numbers(kept, config.accepted)} -> {folder / ADAPTER}"
    )
