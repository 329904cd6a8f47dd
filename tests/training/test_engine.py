"""The machine that a run is given: devices, dtype, place of the split, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmsd_jax.adapters.files import named_shapes
from xmsd_jax.adapters.kinds import KINDS, outline, parameters
from xmsd_jax.config import ConfigError, UserError, load
from xmsd_jax.training import engine
from xmsd_jax.training.engine import RESIDENT_SHARE, Engine, check_batch, free_memory, matmul_rate, step_flops


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"devices": 0}, "devices: must be at least 1, or null for all, got 0"),
        ({"stream_steps": 0}, "stream_steps and processes: must be at least 1, got 0 and 1"),
        ({"processes": 0}, "must be at least 1, got 8 and 0"),
        ({"process": 1}, r"process: must be 0\.\.0, got 1"),
        ({"processes": 2}, "coordinator: HOST:PORT of process 0"),
        ({"coordinator": "localhost:1"}, "else null"),
        ({"compute": "float16"}, "compute"),
        ({"mode": "disk"}, "mode"),
    ],
)
def test_machines_that_do_not_exist_are_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        load(Engine, values)


def test_more_devices_than_there_are_is_refused_with_both_numbers():
    with pytest.raises(UserError, match=r"engine\.devices: 3 are asked for, 2 are there; set it to 2"):
        Engine(devices=3).mesh()


def test_all_devices_are_taken_unless_said_otherwise():
    assert Engine().mesh().size == len(jax.devices()) == 2
    assert Engine(devices=1).mesh().devices.tolist() == jax.devices()[:1]


def test_a_batch_that_cannot_be_cut_is_refused_with_both_numbers():
    check_batch(6, 2)
    with pytest.raises(UserError, match=r"recipe\.batch: 7 answers cannot be cut over 2 devices; take a multiple of 2"):
        check_batch(7, 2)


def test_half_precision_is_for_a_gpu_unless_said_otherwise(monkeypatch):
    assert Engine().dtype == jnp.float32
    assert Engine(compute="bfloat16").dtype == jnp.bfloat16
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert Engine().dtype == jnp.bfloat16
    assert Engine(compute="float32").dtype == jnp.float32


def test_free_memory_decides_where_a_split_lies(monkeypatch):
    monkeypatch.setattr(engine, "free_memory", lambda: 1000)
    most = int(1000 * RESIDENT_SHARE)
    assert Engine().is_resident(most)
    assert not Engine().is_resident(most + 1)
    assert Engine(mode="resident").is_resident(10**15)
    assert not Engine(mode="stream").is_resident(0)
    monkeypatch.setattr(engine, "free_memory", lambda: None)
    assert Engine().is_resident(10**15), "where nobody says what is free, it is tried"


def test_free_memory_is_the_devices_or_the_hosts(monkeypatch):
    assert 2**20 < free_memory() < 2**50

    class Device:
        def memory_stats(self):
            return {"bytes_limit": 100, "bytes_in_use": 30}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert free_memory() == 70


def test_a_matrix_product_is_timed_once():
    rate = matmul_rate(np.dtype("float32"))
    assert 1e8 < rate < 1e14
    assert matmul_rate(np.dtype("float32")) == rate


@pytest.mark.parametrize("kind", KINDS)
def test_model_flops_are_six_a_weight_and_position_and_attention_in_full(kind):
    shapes = named_shapes(outline(kind, 4096))
    vectors = sum(int(np.prod(shape)) for name, shape in shapes.items() if not name.endswith("kernel"))
    attention = 12 * 4096 * 50 if "layer.qkv.kernel" in shapes else 0  # scores and sums, once forward, twice backward
    assert step_flops(shapes, 100, 50) == 100 * (6 * (parameters(kind, 4096) - vectors) + attention)
