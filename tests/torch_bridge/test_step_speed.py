"""What is timed is what decoding does: the session stays as it was, every product is there, kernels are named."""

import pytest
import torch

from tests.torch_bridge.fake_pair import fake_clip, fake_target
from torch_bridge import step_speed
from torch_bridge.fused_projections import fuse
from torch_bridge.made_pair import made_target
from torch_bridge.nf4 import linear
from torch_bridge.nf4.linear import fuse_nf4
from torch_bridge.static_session import StaticSession
from torch_bridge.step_speed import (
    OTHERS,
    head_seconds,
    kernel_groups,
    pass_seconds,
    product_seconds,
    prompt_seconds,
)
from torch_bridge.vlm import Session
from xmsd_jax.data.made_shape import MadeShape
from xmsd_jax.data.quantisation import Quantisation
from xmsd_jax.data.questions import QUESTIONS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["growing", "static"])
def session(request):
    vlm = fake_target()
    session = Session(vlm) if request.param == "growing" else StaticSession(vlm, room=20)
    session.prefill(QUESTIONS[0], session.encode(fake_clip(0)), [4, 5])
    return session


def test_passes_are_timed_in_place(session, monkeypatch):
    read, passes = session.read, []
    verify = session.verify
    monkeypatch.setattr(session, "verify", lambda ids: passes.append(len(ids)) or verify(ids))
    times = pass_seconds(session, (1, 3, 6), repeats=4)
    assert {count: len(seconds) for count, seconds in times.items()} == {1: 4, 3: 4, 6: 4}
    assert min(min(seconds) for seconds in times.values()) > 0
    assert passes == [1, 3, 6] * 6, "turn by turn, two turns warm up"
    assert session.read == read


def test_a_prompt_is_timed_in_its_four_ways(session):
    times = prompt_seconds(session, QUESTIONS[1], fake_clip(1), repeats=3, riding=5)
    assert set(times) == {"vision", "prefill", "prefill riding", "prefill riding late"}
    assert all(len(seconds) == 3 and min(seconds) > 0 for seconds in times.values())
    assert session.read == 5


def test_every_product_is_run_once_fused_or_not(monkeypatch):
    vlm = fake_target(held=2)
    rows = []

    class Counting(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.nn.functional.linear:
                rows.append(tuple(args[1].shape))
            return function(*args, **(kwargs or {}))

    with Counting():
        assert len(product_seconds(vlm, 3, repeats=2)) == 2
        plain = rows[: len(rows) // 3]
        rows.clear()
        fuse(vlm.language_model)
        product_seconds(vlm, 3, repeats=2)
        fused = rows[: len(rows) // 3]
    assert sum(out * inner for out, inner in plain) == sum(out * inner for out, inner in fused)
    assert (len(plain), len(fused)) == (14, 8)


def test_a_joined_product_of_4_bits_is_one_product(monkeypatch):
    shape = MadeShape(
        width=64, layers=2, heads=4, ffn=128, vocabulary=256, target_vocabulary=320,
        tower_width=64, tower_layers=2, tower_heads=4, tower_ffn=128, target_image=56, drafter_image=84,
    )  # fmt: skip
    target = made_target(shape, Quantisation(format="nf4"), device="cpu", dtype=torch.bfloat16)
    assert fuse_nf4(target.language_model) == 7 * shape.layers
    taken, multiply = [], linear.nf4_matmul
    monkeypatch.setattr(linear, "nf4_matmul", lambda x, *rest: taken.append(rest[-1]) or multiply(x, *rest))
    product_seconds(target, 3, repeats=1)
    layer = [3 * shape.width, shape.width, 2 * shape.ffn, shape.width]
    assert taken == 2 * shape.layers * layer, "twice: once to warm up"
    taken.clear()
    assert len(head_seconds(target, 3, repeats=2)) == 2
    assert not taken, "the head is not quantised"


@pytest.mark.parametrize(
    ("kernel", "group"),
    [
        ("_few_rows_splits", "attention"),
        ("void pytorch_flash::flash_fwd_splitkv_kernel", "attention"),
        ("nvjet_tst_64x8_64x16_4x1_v_bz_TNT", "products"),
        ("void gemv2T_kernel_val<int, int, __nv_bfloat16>", "products"),
        ("kgemm_4bit_inference_naive", "products"),
        ("Memcpy DtoH (Device -> Pinned)", "copies"),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0", OTHERS),
        ("triton_poi_fused_add_attend_few_cat_index_copy_mul_neg_1", OTHERS),
        ("triton_poi_fused_mul_nf4_matmul_silu_split_with_sizes_2", OTHERS),
        ("_multiply", "products"),
    ],
)
def test_kernels_are_told_apart_by_name(kernel, group):
    assert step_speed._group(kernel) == group


def test_groups_and_gaps_make_up_the_wall_clock(monkeypatch, session):
    fake = ("table", [("gemm_a", 0.004, 10), ("_few_rows_splits", 0.001, 5), ("triton_x", 0.0005, 5)])
    monkeypatch.setattr(step_speed, "profiled_events", lambda call, device: (call(), fake)[1])
    found = kernel_groups(session, 2, passes=5)
    assert found["groups_us"]["products"] == pytest.approx(800)
    assert sum(found["groups_us"].values()) == pytest.approx(found["wall_us"])
    assert found["launches"] == 4
