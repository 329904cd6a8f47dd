"""Sweeps: a member is its single run, on one device and on many; the dead are masked and told, the others go on."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.training import made_up, sweep_worker
from xmsd_jax.adapters.files import named_parameters
from xmsd_jax.adapters.kinds import make
from xmsd_jax.config import ConfigError
from xmsd_jax.training.engine import Engine
from xmsd_jax.training.loop import train
from xmsd_jax.training.losses import Objective
from xmsd_jax.training.sources import ResidentSource
from xmsd_jax.training.state import Hyper, Skeleton, begin
from xmsd_jax.training.step import P, batches, placed
from xmsd_jax.training.sweep import check_together
from xmsd_jax.training.sweep_step import make_member_steps, stacked

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("quick_compile")


def alone(kind: str, loss: str):
    """The single runs of the members that live."""
    return {
        i: train(
            make(kind, sweep_worker.WIDTH, seed=recipe.seed),
            training=made_up.pairs(),
            validation=made_up.pairs(8, seed=1, prefix="validation"),
            head=made_up.head(),
            mode="own",
            recipe=recipe,
            engine=Engine(devices=1),
        )
        for i, recipe in enumerate(sweep_worker.recipes(loss))
        if i != 3
    }


def assert_same_curves(curves: list[dict], singles: dict) -> None:
    for i, single in singles.items():
        assert curves[i]["died"] is None
        assert curves[i]["kept"] == single.kept.epoch
        for name in ("training", "validation"):
            expected = [getattr(epoch, f"{name}_loss") for epoch in single.epochs]
            assert_allclose(curves[i][name], expected, rtol=1e-5, err_msg=f"member {i}, {name}")
        assert curves[i]["accepted"] == [epoch.accepted for epoch in single.epochs]


@pytest.fixture(scope="module")
def singles():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield {kind: alone(kind, loss) for kind, loss in (("L1", "study"), ("B1", "next"))}
    jax.config.update("jax_disable_most_optimizations", before)


def test_a_member_is_its_single_run_on_one_device(singles):
    members = sweep_worker.together("L1", "study", 1)
    assert_same_curves(sweep_worker.curves(members), singles["L1"])
    for i, single in singles["L1"].items():
        own, other = named_parameters(members[i].adapter), named_parameters(single.adapter)
        for name, value in own.items():
            assert_allclose(value, other[name], rtol=1e-5, atol=1e-6, err_msg=f"member {i}, {name}")


def test_a_dead_member_is_told_and_changes_nothing_of_the_others(singles):
    dead = sweep_worker.curves(sweep_worker.together("L1", "study", 1))[3]
    assert dead["kept"] is None
    assert dead["died"].startswith("epoch 1, step 2 of 3: rows ")


def test_members_are_cut_over_four_devices(singles):
    flags = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.training.sweep_worker"]
    done = subprocess.run(command, cwd=ROOT, env=flags, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for kind, curves in found.items():
        assert_same_curves(curves, singles[kind])
        assert curves[3]["died"]


def test_one_program_for_all_epochs_and_a_dead_member_keeps_its_state():
    mesh = Engine(devices=2).mesh()
    skeleton, params = Skeleton.split(make("L1", 64))
    recipe = made_up.recipe()
    steps = make_member_steps(skeleton, Objective(name="study", offset=0), mesh, compute=np.float32, dropout=True)
    state = stacked([begin(params)] * 4, mesh)
    hyper = stacked([Hyper.of(recipe)] * 4, mesh)
    before = jax.device_get(state)
    source = ResidentSource.of_pairs(made_up.pairs(), mesh)
    order = batches(np.arange(16), 6)
    alive = placed(np.array([True, False, True, True]), mesh, P("data"))
    rates = placed(np.float32([1e-3, 1e-3, 1e30, 2e-3]), mesh, P("data"))
    for _ in range(2):
        for data, piece in source.epoch(order, cut=False):
            state, alive, _ = steps(state, alive, data, placed(made_up.head(), mesh), piece, rates, hyper)
    assert steps._cache_size() == 1
    assert jax.device_get(alive).tolist() == [True, False, False, True]
    after = jax.device_get(state)
    for name in before.params:
        assert_array_equal(after.params[name][1], before.params[name][1])
        assert np.isfinite(after.params[name][[0, 3]]).all()
    assert after.step.tolist()[:2] == [6, 0]


def test_recipes_that_need_another_program_are_refused():
    base = made_up.recipe()
    check_together([base, dataclasses.replace(base, seed=5, learning_rate=0.1)])
    with pytest.raises(ConfigError, match="split the sweep"):
        check_together([base, dataclasses.replace(base, batch=3)])
