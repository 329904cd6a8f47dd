"""Stage `benchmark` of extraction, whole, on a CPU: each part gives numbers, a ratio is of parts of one run."""

import dataclasses
import sys
from statistics import mean, median

import pytest

from xmsd_jax import config as configs
from xmsd_jax.cli import STAGES, stage_module
from xmsd_jax.config import ConfigError
from xmsd_jax.data.made_shape import MadeShape
from xmsd_jax.data.quantisation import Quantisation
from xmsd_jax.pipeline import extract_speed
from xmsd_jax.pipeline.extract_rows import ASKED, result_rows, table
from xmsd_jax.pipeline.extract_speed import Bench, ExtractSpeedConfig
from xmsd_jax.runs import Run, read_results

BOTH = "both models"


def by_metric(rows) -> dict[str, object]:
    return {f"{row.row}/{row.metric}": row for row in rows if "part" not in row.settings}


def packaged(name: str) -> ExtractSpeedConfig:
    return configs.load(ExtractSpeedConfig, configs.find(f"benchmark/{name}.yaml"))


@pytest.fixture(scope="module")
def small() -> ExtractSpeedConfig:
    return packaged("extract_small")


@pytest.fixture(scope="module")
def measured(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("speed")
    return path, extract_speed.run(small, path)


def test_every_part_is_measured(measured, small):
    path, all_rows = measured
    rows = by_metric(all_rows)
    wanted = {f"{row}/{metric}" for row, metric in ASKED}
    wanted |= {
        f"{BOTH}/{metric}"
        for metric in (
            "build_seconds", "answers_per_second_all_included", "seconds_per_160", "device_idle_share_of_all",
            "rows_per_batch", "peak_gpu_gb", "store_bytes_per_answer", "alone_answers_per_second",
        )
    } | {f"{which}/{metric}" for which in ("target", "drafter") for metric in (
        "weights_gb", "mean_tokens", "alone_seconds", "same_ids_share", "same_choices_share", "same_rows_share",
    )}  # fmt: skip
    assert wanted <= set(rows)
    assert all(row.value > 0 for name, row in rows.items() if "idle" not in name and "peak" not in name)
    shared = {"device", "dtype", "quantisation", "weights", "shape", "N", "questions", "expand", "versions"}
    assert all(shared <= set(row.settings) for row in all_rows)
    assert (path / "kernels.txt").read_text()
    assert not list((path / "speed").glob("stores/*"))


def test_ratios_are_of_the_figures_beside_them(measured, small):
    rows = by_metric(measured[1])
    rate, alone = rows[f"{BOTH}/answers_per_second"], rows[f"{BOTH}/alone_answers_per_second"]
    assert rows[f"{BOTH}/speedup"].value == pytest.approx(rate.value / alone.value)
    assert "generate(output_hidden_states=True)" in rows[f"{BOTH}/speedup"].baseline
    shared, whole = (rows[f"target/prefill_ms_{way}"].value for way in ("shared", "whole"))
    assert rows["target/prefix_speedup"].value == pytest.approx(whole / shared)
    seconds = sum(rows[f"{which}/alone_seconds"].value for which in ("target", "drafter"))
    assert alone.value == pytest.approx(1 / seconds)
    study = rows[f"{BOTH}/study_minutes"]
    assert study.kind == "extrapolated"
    assert study.value == pytest.approx((52080 / rate.value + study.settings["once_seconds"]) / 60)
    assert rows[f"{BOTH}/seconds_per_160"].value == pytest.approx(160 / rate.value)


def test_what_was_extracted_is_what_was_asked_for(measured, small):
    rows = by_metric(measured[1])
    about = rows[f"{BOTH}/answers_per_second"].settings
    assert about["answers"] == sum(about["batch_rows"]) == small.made.count * len(small.questions)
    assert max(about["batch_rows"]) == rows[f"{BOTH}/rows_per_batch"].value == small.batch * len(small.questions)
    assert [rows[f"{which}/mean_tokens"].value for which in ("target", "drafter")] == [small.max_new_tokens] * 2
    states = 3 * small.max_new_tokens * small.shape.width * 4
    assert states < rows[f"{BOTH}/store_bytes_per_answer"].value < 2 * states
    assert about["prompt_tokens"]["target"]["visual"] == 8 * small.shape.target_frame_tokens
    assert 0 <= rows[f"{BOTH}/device_idle_share"].value <= rows[f"{BOTH}/device_idle_share_of_all"].value < 1


def test_in_float32_a_batch_gives_the_ids_of_one_at_a_time(measured):
    rows = by_metric(measured[1])
    for which in ("target", "drafter"):
        assert rows[f"{which}/same_ids_share"].value == rows[f"{which}/same_rows_share"].value == 1
        assert rows[f"{which}/same_ids_share"].settings["margins_ulp"] == []


def test_each_part_of_a_batch_has_its_seconds(measured):
    parts = {row.settings["part"]: row.value for row in measured[1] if "part" in row.settings}
    models = [f"{which} {what}" for which in ("target", "drafter") for what in ("vision", "prefill", "decode")]
    assert set(parts) == {"reading", *models, "drafter synced"}


def test_a_small_pair_gets_no_verdict(measured):
    printed = table(measured[1])
    assert "asked: at least 12, at full size" in printed
    assert "reached" not in printed
    assert "MISSED" not in printed


def test_finished_parts_are_reused_and_give_the_same_rows(measured, small, capsys, monkeypatch):
    path, rows = measured
    monkeypatch.setitem(sys.modules, "torch_bridge.made_pair", None)
    again = extract_speed.run(small, path)
    assert [(row.row, row.metric, row.value) for row in again] == [(row.row, row.metric, row.value) for row in rows]
    told = capsys.readouterr().out
    assert all(f"{part}: reused" in told for part in ("pair", "speed", "single", "prefix", "cut"))
    assert len(read_results(path)[0]) == len(rows)


def test_without_h5py_the_cut_is_left_out_with_its_reason(tmp_path, small, capsys, monkeypatch):
    def absent(*_, **__):
        raise ConfigError("needs h5py and hdf5plugin")

    monkeypatch.setattr(extract_speed, "measure_on_one_core", absent)
    rows = extract_speed.run(dataclasses.replace(small, parts=("prefix", "cut")), tmp_path)
    assert {row.row for row in rows} == {"target", "drafter", BOTH}
    assert "cut is not measured: needs h5py and hdf5plugin" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="needs h5py"):
        extract_speed.run(dataclasses.replace(small, parts=("cut",)), tmp_path / "alone")


def test_the_cut_alone_needs_neither_pair_nor_gpu(tmp_path, small, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_bridge.made_pair", None)
    config = dataclasses.replace(packaged("extract"), parts=("cut",), cut_seconds=0.05, cut_recording_seconds=2)
    config = dataclasses.replace(config, cut_events_per_second=small.cut_events_per_second)
    assert config.device == "cuda"
    rows = extract_speed.run(config, tmp_path)
    assert [row.metric for row in rows] == ["cut", "render", "cut_and_render", "recording"]
    assert all(row.value > 0 and row.settings["cores"] == 1 for row in rows)
    assert "reached" not in rows[2].settings  # a smaller recording than the figure is asked of
    assert [row.value for row in read_results(tmp_path)[0]] == [row.value for row in rows]


def test_one_at_a_time_is_measured_on_four_bits_though_extraction_expands_them(tmp_path, small):
    from torch_bridge.expand import is_expanded

    config = dataclasses.replace(
        small,
        quantisation=Quantisation(format="nf4"),
        dtype="bfloat16",
        expand="always",
        made=dataclasses.replace(small.made, count=2),
        questions=(0, 1),
        single_answers=2,
        runs=1,
        profile=False,
    )
    bench = Bench(config, Run.open(tmp_path, config), fresh=False)
    assert [is_expanded(vlm) for vlm in bench.pair_as_made()] == [False, False]
    assert bench.speed()["expanded"] == {"target": True, "drafter": True}
    assert [is_expanded(vlm) for vlm in bench.pair] == [True, True]
    found = bench.single()
    assert [is_expanded(vlm) for vlm in bench.pair] == [False, False]
    for which in ("target", "drafter"):
        same = found[which]["agreement"]
        assert found[which]["lengths"] == [small.max_new_tokens] * 2
        assert 0 <= same["same_ids"] <= same["same_choices"] <= 1
        assert len(same["margins_ulp"]) == round(2 * (1 - same["same_rows"]))


def made_up(config: ExtractSpeedConfig) -> dict[str, object]:
    """Numbers of a run on one GPU, made up."""
    facts = {"bytes": 5e9, "footprint": {}, "quantisation": "nf4", "visual_tokens": 2056, "text_tokens": [20]}
    one = {
        "seconds": 40.0, "rows": 600, "target_len": 50.0, "drafter_len": 50.0, "store_bytes": 7e8, "peak_bytes": 6e10,
        "span_seconds": 38.0, "gap_seconds": 0.95, "batches": [16, 16, 16, 12], "plan": {},
    }  # fmt: skip
    seconds = {"reading": 2.0, "target decode": 3.0, "drafter decode": 2.0}
    agreement = {
        "same_ids": 0.9,
        "same_choices": 0.98,
        "same_rows": 0.5,
        "margins_ulp": [1.0],
        "rows": 2,
        "batch_rows": 20,
    }
    single = {"seconds": [2.0, 4.0, 3.0], "lengths": [50] * 3, "agreement": agreement}
    return {
        "pair": {"target": facts, "drafter": facts, "build_seconds": 6.0, "device": "H200", "versions": {}},
        "speed": {
            "expanded": {"target": True, "drafter": True},
            "first": {**one, "seconds": 60.0}, "warm": [one, {**one, "seconds": 50.0}],
            "parts": {"clips": 16, "seconds": seconds, "kernel_seconds": 4.0},
        },
        "single": {"target": single, "drafter": single},
        "prefix": {"shared": [1.0, 1.1, 1.2], "whole": [4.4, 4.4, 4.8]},
        "cut": {"cut": 40.0, "render": 60.0, "cut_and_render": 19.0, "recording": 12.0, "events": 40.0,
                "bytes_per_event": 3.0},
    }  # fmt: skip


def test_figures_by_hand_at_full_size():
    config = packaged("extract")
    rows = by_metric(result_rows(made_up(config), config))
    rate = mean([600 / 40, 600 / 50])
    assert rows[f"{BOTH}/answers_per_second"].value == pytest.approx(rate)
    assert (rows[f"{BOTH}/answers_per_second"].low, rows[f"{BOTH}/answers_per_second"].high) == (12, 15)
    assert rows[f"{BOTH}/answers_per_second_all_included"].value == pytest.approx(600 / 66)
    assert rows[f"{BOTH}/study_minutes"].value == pytest.approx((52080 / rate + 15 + 6) / 60)
    assert rows[f"{BOTH}/speedup"].value == pytest.approx(rate * 2 * median([2.0, 4.0, 3.0]))
    assert (rows[f"{BOTH}/speedup"].low, rows[f"{BOTH}/speedup"].high) == (12 * 4, 15 * 8)
    assert rows[f"{BOTH}/device_idle_share"].value == pytest.approx(0.025)
    assert rows[f"{BOTH}/device_idle_share_with_kernels"].value == pytest.approx(1 - 0.975 * 0.8)
    assert rows[f"{BOTH}/device_idle_share_of_all"].low == pytest.approx(1 - 37.05 / 40)
    assert rows["target/prefix_speedup"].value == pytest.approx(4)
    assert rows["one batch/kernel_share"].value == pytest.approx(4 / 5)
    assert rows[f"{BOTH}/wall_over_parts"].value == pytest.approx((160 / rate) / 5)
    verdicts = {name: row.settings["reached"] for name, row in rows.items() if "reached" in row.settings}
    assert verdicts == {f"{row}/{metric}": row != "events" for row, metric in ASKED}


def test_what_is_missed_is_said():
    config = packaged("extract")
    printed = table(result_rows(made_up(config), config))
    assert "asked: at least 20: MISSED" in printed
    assert "asked: at least 12: reached" in printed
    assert "asked: at most 0.05: reached" in printed


def test_the_packaged_config_is_the_issue_s_table():
    config = packaged("extract")
    assert config.shape == MadeShape()
    assert config.made.count * len(config.questions) >= 600
    assert (config.max_new_tokens, len(config.questions), config.study_answers) == (50, 10, 52080)
    assert (config.quantisation.format, config.quantisation.compute, config.quantisation.double) == (
        "nf4", "bfloat16", True,
    )  # fmt: skip


def test_the_command_line_finds_the_stage_by_its_config():
    module, config = stage_module(STAGES["benchmark"], configs.fields_of(configs.find("benchmark/extract.yaml")))
    assert (module, config) == (extract_speed, ExtractSpeedConfig)


@pytest.mark.parametrize(
    "changes",
    [{"repeats": 2}, {"batch": 0}, {"questions": (11,)}, {"single_answers": 61}, {"runs": 0}, {"prefix_clips": 100}],
)
def test_impossible_settings_are_refused(changes):
    with pytest.raises(ConfigError):
        ExtractSpeedConfig(**changes)


def test_a_gpu_that_is_not_there_is_said_before_anything_is_made(tmp_path, small):
    import torch

    if torch.cuda.is_available():
        return
    with pytest.raises(ConfigError, match="torch finds no GPU"):
        extract_speed.run(dataclasses.replace(small, device="cuda"), tmp_path)
