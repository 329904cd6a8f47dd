"""One device, four, or two processes: the same run. In processes of their own, which have as many devices as asked."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from numpy.testing import assert_allclose

from tests.small_store import write_store
from tests.source_tree import ROOT

SECONDS = 120
ROUNDING = 1e-5  # sums over devices are added up in another order
PLACES = ("resident", "stream")


def started(folder: Path, devices: int, engines: list[dict]) -> subprocess.Popen:
    """A process with so many devices that trains with one engine after the other."""
    world = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-m", "tests.training.on_devices", str(folder), json.dumps(engines)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, cwd=ROOT, env=world, **pipes)


def curves(processes: list[subprocess.Popen]) -> list[list]:
    """What each process printed, among what libraries print; none outlives this call."""
    try:
        told = [process.communicate(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), told[0][1][-2000:]
    return [[json.loads(line) for line in out.splitlines() if line.startswith("[[")] for out, _ in told]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    write_store(root / "train", rows=16, prefix="train", shard_rows=4)
    write_store(root / "validation", rows=8, seed=1, prefix="validation")
    return root


@pytest.fixture(scope="module")
def alone(folder) -> dict[tuple[int, str], list]:
    """Runs of one process by number of devices and place."""
    cases = [(1, "resident"), (2, "resident"), (4, "resident"), (4, "stream")]
    engines = [{"devices": devices, "mode": mode, "stream_steps": 1} for devices, mode in cases]
    (found,) = curves([started(folder, 4, engines)])
    return dict(zip(cases, found, strict=True))


@pytest.mark.parametrize(("devices", "mode"), [(2, "resident"), (4, "resident"), (4, "stream")])
def test_a_mesh_of_devices_gives_the_curve_of_one_with_dropout_on(alone, devices, mode):
    one = alone[1, "resident"]
    assert len(one) == 3
    assert one[-1][0] < 0.95 * one[0][0], "something is learned"
    assert_allclose(alone[devices, mode], one, rtol=ROUNDING)


def test_two_processes_give_the_curve_of_one(folder, alone):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    shared = {"coordinator": coordinator, "processes": 2, "stream_steps": 1}
    engines = [[{**shared, "process": process, "mode": mode} for mode in PLACES] for process in range(2)]
    first, second = curves([started(folder, 1, own) for own in engines])
    assert first == second
    for found in first:
        assert_allclose(found, alone[1, "resident"], rtol=ROUNDING)
