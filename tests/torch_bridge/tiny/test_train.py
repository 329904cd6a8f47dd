"""Making the pair: the same config gives the same weights, and a bad one is one line and exit code 2."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from torch_bridge.eventgpt import load_drafter
from torch_bridge.tiny.learner import Learner, Material
from torch_bridge.tiny.models import PairShape, new_drafter
from torch_bridge.tiny.packing import Blocks
from torch_bridge.tiny.train import Schedule, TrainConfig, fit, main, rate_at
from torch_bridge.video_llava import load_target
from xmsd_jax import config as configs
from xmsd_jax.runs import read_results

CONFIG = """
out: runs/tiny
world: {sequences: {pair-train: 1, pair-test: 1}, clips_per_sequence: 2, seed: 7}
shape: {width: 64, vocabulary: 512, target_layers: 1, target_ffn: 64, drafter_layers: 1, drafter_ffn: 64,
        vision_width: 64, vision_ffn: 64, vision_layers: 2}
target: {steps: 3, clips: 2, questions: 2, warmup: 1}
drafter: {steps: 3, clips: 2, questions: 2, warmup: 1}
device: cpu
"""


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "pair.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def torch_settings(monkeypatch):
    """Training asks for determinism for the whole process: give the process back as it was."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.set_float32_matmul_precision(before[1])


@pytest.mark.usefixtures("torch_settings")
def test_the_same_config_gives_the_same_weights_bit_for_bit(config, tmp_path, capsys):
    for name in ("first", "again"):
        torch.rand(len(name) % 3 + 1)  # what was drawn before must not matter
        assert main([str(config), "--out", str(tmp_path / name)]) == 0
    files = sorted(p.relative_to(tmp_path / "first") for p in (tmp_path / "first").glob("*/**/*") if p.is_file())
    assert len([f for f in files if f.suffix == ".safetensors"]) == 2
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
    weights = []
    for seed in ("0", "1"):
        alone = tmp_path / f"alone{seed}"
        assert main([str(config), "--out", str(alone), "--seed", seed, "--models", "[drafter]"]) == 0
        assert not (alone / "target").exists()
        weights.append((alone / "drafter" / "model.safetensors").read_bytes())
    # the drafter does not depend on whether the target was made before, but on the seed it does
    assert weights[0] == (tmp_path / "first" / "drafter" / "model.safetensors").read_bytes() != weights[1]

    rows, provenance = read_results(tmp_path / "first")
    assert all(row.n for row in rows)
    assert "drafter" in {row.row for row in rows}
    assert provenance["config"]["world"]["seed"] == 7
    assert load_target(tmp_path / "first" / "target").dtype == torch.float32
    assert load_drafter(tmp_path / "first" / "drafter").real_vocabulary == 512
    assert "drafter step 2: loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--nonsense", "1"], "nonsense"),
        (["--target.steps", "many"], "target.steps"),
        (["--target.learning_rate", "fast"], "learning_rate"),
        (["--out"], "pairs `--section.field value`"),
        (["out", "x"], "pairs `--section.field value`"),
        (["--world.sequences", "{train: 4}"], "pair-train and pair-test"),
        (["--world.event_fps", "30"], "event_fps"),
        (["--models", "[teacher]"], "models"),
    ],
)
def test_a_bad_config_is_one_line_and_exit_code_2(config, change, says, capsys):
    assert main([str(config), *change]) == 2
    error = capsys.readouterr().err
    assert error.startswith("xmsd: error: ")
    assert error.count("\n") == 1
    assert says in error


def test_a_missing_config_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert main([str(tmp_path / "none.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "none.yaml" in error


def test_a_gpu_that_is_not_there_is_refused_before_any_work(config, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([str(config), "--device", "cuda"]) == 2
    assert "torch finds no GPU; set device to cpu" in capsys.readouterr().err


def test_help_says_how_to_call_it(capsys):
    assert main(["--help"]) == 0
    assert main([]) == 2
    assert capsys.readouterr().out.count("python -m torch_bridge.tiny.train CONFIG") == 2


def test_the_committed_config_is_the_one_the_figures_come_from():
    """Both models were made and judged with the config in results/tiny_pair, each by its own `models`."""
    root = Path(__file__).resolve().parents[3]
    committed = configs.load(TrainConfig, root / "configs" / "tiny" / "pair.yaml")
    _, provenance = read_results(root / "results" / "tiny_pair")
    used = provenance["config"]
    assert configs.dump(replace(committed, models=tuple(used["models"]))) == used


def test_the_learning_rate_rises_then_falls_to_a_hundredth():
    schedule = Schedule(steps=100, warmup=10)
    rates = [rate_at(step, schedule) for step in range(101)]
    assert rates[:11] == pytest.approx([*np.arange(1, 11) / 10, 1.0])
    assert rates[55] == pytest.approx(0.505)
    assert rates[100] == pytest.approx(0.01)
    assert np.all(np.diff(rates[10:]) < 0)


def test_a_loss_that_is_not_finite_stops_the_training():
    shape = PairShape(width=64, vocabulary=64, drafter_layers=1, drafter_ffn=64, vision_width=64, vision_ffn=64,
                      vision_layers=2)  # fmt: skip
    torch.manual_seed(0)
    learner = Learner(new_drafter(shape), lambda model, pixels: pixels.mean((3, 4))[..., :1].repeat(1, 1, 64), (2,), 64)
    blocks = Blocks(ids=np.ones((1, 1, 4), np.int16), labels=np.ones((1, 1, 4), np.int16), ask=np.array([1]))
    frames = np.zeros((1, 2, 8, 8, 3), np.uint8)
    data = Material.on(
        torch.device("cpu"), frames=frames, blocks=blocks, facts=np.zeros((1, 1), np.int64), before=np.array([1])
    )
    schedule = Schedule(steps=4, clips=1, questions=1, learning_rate=1e35, warmup=1)
    with pytest.raises(FloatingPointError, match=r"drafter: loss is (nan|inf) at step 3; lower the learning rate"):
        fit(learner, data, schedule, seed=0, label="drafter")
