"""Stage `benchmark` of training: each part gives numbers, a ratio is of one run, a finished part is reused."""

import pytest

from xmsd_jax.config import ConfigError
from xmsd_jax.pipeline import train_speed
from xmsd_jax.pipeline.made_split import Shape, made_index
from xmsd_jax.pipeline.train_speed import TrainSpeedConfig, result_rows
from xmsd_jax.runs import read_results
from xmsd_jax.training.engine import Engine

SMALL = {
    "kinds": ("L1",),
    "shape": Shape(answers=32, positions=10, width=64, vocabulary=50),
    "batch": 8,
    "steps": 4,
    "repeats": 2,
    "torch_modes": ("eager",),
    "study_answers": 320,
    "study_epochs": 2,
    "stream_kind": "L3",
    "sweep_members": 2,
    "sweep_epochs": 1,
    "judge_answers": 10,
    "judge_gamma": 2,
    "parity_kinds": ("L3",),
    "parity_steps": 10,
    "parity_answers": 16,
    "engine": Engine(stream_steps=2, devices=1),
}


def by_metric(rows) -> dict[str, object]:
    return {f"{row.row}/{row.metric}": row for row in rows}


def test_every_part_is_measured_and_reused(tmp_path, capsys):
    config = TrainSpeedConfig(**SMALL)
    rows = by_metric(train_speed.run(config, tmp_path))
    ours, other, ratio = (rows[f"L1/{name}"] for name in ("step_ms", "torch_step_ms", "speedup"))
    assert ratio.value == pytest.approx(other.value / ours.value)
    assert ratio.low <= ratio.high
    assert (ratio.baseline, ratio.settings["mode"]) == ("the same in PyTorch, compiled", "eager")
    assert ratio.settings["states"] == "random"
    assert rows["L3/loss_difference"].value < 1e-4
    assert rows["L3/stream_host_gb"].value > 0.1
    assert rows["B1/judge_seconds"].settings["answers"] == 10
    assert rows["sweep of 2 x L1/throughput"].baseline == "single runs"
    study = rows["all adapters/study_minutes"]
    assert study.kind == "extrapolated"
    assert study.settings["measured_answers"] == 32
    share, epoch = rows["L1/epoch_share_ready"], rows["L1/epoch_answers_per_second"]
    assert share.value == pytest.approx(epoch.value / share.settings["pure"])
    assert (tmp_path / "kernels_L1.txt").read_text()
    assert rows["L1/epoch_share"].value == pytest.approx(epoch.value / (8 / ours.value * 1e3))
    capsys.readouterr()
    again = by_metric(train_speed.run(config, tmp_path))
    assert {name: row.value for name, row in again.items()} == {name: row.value for name, row in rows.items()}
    assert "steps_L1: reused" in capsys.readouterr().out
    assert len(read_results(tmp_path)[0]) == len(rows)


def test_minutes_of_the_study_follow_from_the_epochs():
    config = TrainSpeedConfig(**SMALL)
    ours = {"ms": [1.0, 2.0, 3.0], "compile_s": 6.0, "flops": 1e9, "loss": 1.0}
    steps = {"L1": {"ours": ours, "epoch": {"epoch": 100.0, "slowest": 90.0, "pure": None}, "torch": {}}}
    found = {"chip": {"chip": {"matmul_tflops": 1.0, "copy_gbs": 1.0}}, "steps": steps}
    rows = by_metric(result_rows(found, config))
    assert rows["all adapters/study_minutes"].value == pytest.approx((320 / 100 * 2 + 6) / 60)
    assert rows["L1/mfu"].value == pytest.approx(1e9 / 2e-3 / 1e12)
    assert "L1/speedup" not in rows


def test_made_answers_have_the_study_s_lengths():
    index = made_index(Shape(answers=4096, positions=50, width=16, vocabulary=10))
    assert index.target_len.min() >= 11
    assert index.target_len.max() <= 50
    assert index.target_len.mean() == pytest.approx(36.9, abs=0.5)
    assert (index.same_mask.sum(1) == index.target_len).all()
    assert (index.next_mask.sum(1) == index.target_len - 1).all()


@pytest.mark.parametrize("changes", [{"kinds": ("L9",)}, {"steps": 100}, {"repeats": 1}])
def test_impossible_settings_are_refused(changes):
    with pytest.raises(ConfigError):
        TrainSpeedConfig(**{**SMALL, **changes})


@pytest.mark.parametrize("changes", [{"answers": 1}, {"width": 20}])
def test_impossible_shapes_are_refused(changes):
    with pytest.raises(ConfigError):
        Shape(**changes)
