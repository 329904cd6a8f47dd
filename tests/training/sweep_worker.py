"""Trains a sweep on as many devices as there are and prints what came of it; run by test_sweep in a process."""

import dataclasses
import json
import sys

from tests.training import made_up
from xmsd_jax.adapters.kinds import make
from xmsd_jax.training.engine import Engine
from xmsd_jax.training.recipe import Recipe
from xmsd_jax.training.sources import ResidentSource
from xmsd_jax.training.sweep import Member, train_together

WIDTH = 64


def recipes(loss: str) -> list[Recipe]:
    """Members that differ in everything that members may differ in; the fourth dies."""
    base = made_up.recipe(dropout=0.1, loss=loss, select="accepted")
    changes = (
        {"learning_rate": 1e-3},
        {"learning_rate": 3e-3, "seed": 3, "clip": 0.5},
        {"dropout": 0.0, "weight_decay": 0.1, "cosine_epochs": 2},
        {"learning_rate": 1e30},
        {"epochs": 2, "token_weight": 0.5},
    )
    return [dataclasses.replace(base, **change) for change in changes]


def together(kind: str, loss: str, devices: int) -> list[Member]:
    """The members, trained at once."""
    engine = Engine(devices=devices)
    mesh = engine.mesh()
    members = recipes(loss)
    return train_together(
        [make(kind, WIDTH, seed=recipe.seed) for recipe in members],
        members,
        training=ResidentSource.of_pairs(made_up.pairs(), mesh),
        validation=ResidentSource.of_pairs(made_up.pairs(8, seed=1, prefix="validation"), mesh),
        head=made_up.head(),
        mode="own",
        engine=engine,
        mesh=mesh,
    )


def curves(members: list[Member]) -> list[dict]:
    """Loss curves and deaths, as JSON."""
    return [
        {
            "training": [epoch.training_loss for epoch in member.epochs],
            "validation": [epoch.validation_loss for epoch in member.epochs],
            "accepted": [epoch.accepted for epoch in member.epochs],
            "kept": member.kept and member.kept.epoch,
            "died": member.died,
        }
        for member in members
    ]


if __name__ == "__main__":
    print(json.dumps({kind: curves(together(kind, loss, 4)) for kind, loss in (("L1", "study"), ("B1", "next"))}))
    sys.exit(0)
