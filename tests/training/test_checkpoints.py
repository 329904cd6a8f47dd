"""Checkpoints: a run that is killed goes on to the same bits; what is damaged or foreign is refused in one line."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.small_store import write_store
from tests.source_tree import ROOT
from tests.training import made_up
from xmsd_jax.adapters.files import named_parameters
from xmsd_jax.adapters.kinds import make
from xmsd_jax.data.batches import read_index
from xmsd_jax.data.store import Store
from xmsd_jax.training.checkpoints import KEEP, CheckpointError, Checkpoints
from xmsd_jax.training.engine import Engine
from xmsd_jax.training.loop import train
from xmsd_jax.training.sources import store_source

EPOCHS = 4
STATE = {"weights": jnp.arange(6.0).reshape(2, 3), "moments": (jnp.ones(2), jnp.zeros((), jnp.int32))}
SCRIPT = """
import sys, time
from pathlib import Path
from tests.training.test_checkpoints import trained
def pause(epoch):
    print(epoch.epoch, flush=True)
    time.sleep({seconds})
trained(Path(sys.argv[1]), on_epoch=pause, streamed=[Path(path) for path in sys.argv[2:]])
"""


@pytest.fixture(scope="module", autouse=True)
def fresh_programs():
    """Forget what earlier tests of the process compiled with fewer optimisations, which rounds otherwise.

    The flag is no part of JAX's cache key: initial values would come from those programs, unlike in a new process.
    """
    jax.clear_caches()


def splits(streamed: Sequence[Path], engine: Engine):
    """Pairs in memory, or the same answers in stores that are read while training runs."""
    if not streamed:
        return made_up.pairs(), made_up.pairs(8, seed=1, prefix="validation")
    stores = [Store.open(path) for path in streamed]
    return [
        store_source(store, read_index(store, inputs="drafter", pairing="index"), "index", engine, engine.mesh())
        for store in stores
    ]


def trained(folder: Path | None, *, on_epoch=lambda e: None, streamed: Sequence[Path] = (), **changes):
    """A short run with dropout, continued from `folder` where it holds a checkpoint."""
    recipe = made_up.recipe(epochs=EPOCHS, dropout=0.2, select="loss", **changes)
    engine = Engine(mode="stream", stream_steps=2)  # pairs in memory are resident in any case
    training, validation = splits(streamed, engine)

    def run(checkpoints):
        return train(
            make("L1", 64),
            training=training,
            validation=validation,
            head=made_up.head(),
            mode="own",
            recipe=recipe,
            engine=engine,
            checkpoints=checkpoints,
            on_epoch=on_epoch,
        )

    if folder is None:
        return run(None)
    with Checkpoints(folder, "key") as checkpoints:
        return run(checkpoints)


def numbers(done) -> list[tuple]:
    return [(e.epoch, e.learning_rate, e.training_loss, e.validation_loss, e.accepted) for e in done.epochs]


def assert_same(done, undisturbed) -> None:
    assert numbers(done) == numbers(undisturbed)
    assert done.kept.epoch == undisturbed.kept.epoch
    for name, value in named_parameters(undisturbed.adapter).items():
        assert_array_equal(named_parameters(done.adapter)[name], value)


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def undisturbed():
    return trained(None)


def test_a_run_that_was_broken_off_ends_with_the_bits_of_an_undisturbed_one(tmp_path, undisturbed):
    told, every = [], 2

    def break_off(epoch):
        told.append(epoch.epoch)
        if told == [1, 2, 3]:
            raise Stop

    with pytest.raises(Stop):
        trained(tmp_path, on_epoch=break_off, checkpoint_every=every)
    done = trained(tmp_path, on_epoch=break_off, checkpoint_every=every)
    assert told == [1, 2, 3, 3, 4]
    assert_same(done, undisturbed)
    assert_same(trained(tmp_path, on_epoch=break_off), undisturbed)
    assert told == [1, 2, 3, 3, 4], "a finished run is read back, not trained"


@pytest.mark.parametrize("place", ["resident", "stream"])
def test_a_run_killed_by_the_system_ends_with_the_bits_of_an_undisturbed_one(tmp_path, undisturbed, place):
    """The undisturbed one is resident in either case: a stream gives the same bits."""
    stores = []
    if place == "stream":
        stores = [
            write_store(tmp_path / name, rows=rows, seed=seed, prefix=name)
            for name, rows, seed in (("train", 16, 0), ("validation", 8, 1))
        ]
    folder = tmp_path / "checkpoints"
    command = [sys.executable, "-c", SCRIPT.format(seconds=0.3), str(folder), *map(str, stores)]
    world = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=world) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "2":  # a write of epoch 2 may be under way
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    told = []
    done = trained(folder, on_epoch=lambda e: told.append(e.epoch), streamed=stores)
    assert told in ([2, 3, 4], [3, 4])
    assert_same(done, undisturbed)


def written(folder: Path, key: str = "key") -> None:
    with Checkpoints(folder, key) as checkpoints:
        for epoch in (1, 2, 3):
            checkpoints.save(epoch, jax.tree.map(lambda x, e=epoch: x + jnp.asarray(e, x.dtype), STATE), {"n": epoch})


def test_the_newest_state_comes_back_with_structure_dtypes_and_notes(tmp_path):
    written(tmp_path)
    with Checkpoints(tmp_path, "key") as checkpoints:
        arrays, notes = checkpoints.restore(STATE)
    assert jax.tree.structure(arrays) == jax.tree.structure(STATE)
    for value, start in zip(jax.tree.leaves(arrays), jax.tree.leaves(STATE), strict=True):
        assert value.dtype == start.dtype
        assert_array_equal(value, np.asarray(start) + 3)
    assert notes["n"] == 3


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    written(tmp_path)
    assert len([path for path in tmp_path.iterdir() if path.name.isdecimal()]) == KEEP


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path / "none", "key") as checkpoints:
        assert checkpoints.restore(STATE) is None


def test_what_is_saved_may_be_donated_at_once(tmp_path):
    raise_all = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf + 1, x), donate_argnums=0)
    state = {"weights": jnp.zeros((64, 64))}
    with Checkpoints(tmp_path, "key") as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(20):
            state = raise_all(state)
    with Checkpoints(tmp_path, "key") as checkpoints:
        assert not checkpoints.restore(state).arrays["weights"].any()


def test_another_runs_checkpoint_is_refused(tmp_path):
    written(tmp_path, "another")
    with (
        Checkpoints(tmp_path, "key") as checkpoints,
        pytest.raises(CheckpointError, match=r"another config or store .*delete the folder"),
    ):
        checkpoints.restore(STATE)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [cut_off, Path.unlink])
def test_every_damaged_file_of_a_checkpoint_is_one_clear_error_or_harmless(tmp_path, damage):
    written(tmp_path / "whole")
    names = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    refused = 0
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        subprocess.run(["cp", "-r", str(tmp_path / "whole"), str(folder)], check=True)
        damage(folder / name)
        with Checkpoints(folder, "key") as checkpoints:
            error, restored = attempt(lambda c=checkpoints: c.restore(STATE))
        refused += error is not None
        assert error is None or (str(error).endswith("delete this folder to train from the start"))
        assert "\n" not in str(error)
        if restored is not None:
            assert_array_equal(restored.arrays["weights"], np.arange(6.0).reshape(2, 3) + 3, err_msg=str(name))
    assert refused > 0


def attempt(restore):
    """The error and the result of a call, one of them None."""
    try:
        return None, restore()
    except CheckpointError as error:
        return error, None
