"""Make the small pair: `python -m torch_bridge.tiny.train CONFIG [--section.field value]`.

Scenes are rendered in worker processes, then both models learn, one after the other. The same config gives the
same weights on the same machine and library versions.
"""

import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from torch_bridge.eventgpt import PROMPT, SYSTEM
from torch_bridge.eventgpt_files import save_drafter
from torch_bridge.folders import text_ids, with_bos
from torch_bridge.tiny.evaluate import evaluate_model
from torch_bridge.tiny.learner import Learner, Material, drafter_visual
from torch_bridge.tiny.models import PairShape, new_drafter, new_target, save_target, save_tokenizer
from torch_bridge.tiny.packing import pack
from torch_bridge.tiny.scenes import MOTION_CLASSES, SIGHT_CLASSES, Scenes, make_scenes
from torch_bridge.tiny.vocabulary import train_tokenizer
from torch_bridge.video_llava import AFTER_VIDEO, BEFORE_VIDEO, video_tokens
from xmsd_jax import config as configs
from xmsd_jax.data.answers import drafter_answer, target_answer
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.world import WorldConfig
from xmsd_jax.runs import Row, progress, provenance, write_results

SPLITS = ("pair-train", "pair-test")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """AdamW with linear warm-up and cosine decay to a hundredth."""

    steps: int = 9000
    clips: int = 64
    questions: int = 5
    learning_rate: float = 1.5e-3
    warmup: int = 400
    weight_decay: float = 0.05
    fact_weight: float = 0.5


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that the weights depend on. `world.sequences` needs the splits `pair-train` and `pair-test`."""

    out: Path
    shape: PairShape = field(default_factory=PairShape)
    world: WorldConfig = field(default_factory=lambda: WorldConfig(sequences=dict.fromkeys(SPLITS, 100)))
    target: Schedule = field(default_factory=Schedule)
    drafter: Schedule = field(default_factory=Schedule)
    target_style: float = 0.25
    """Share of the drafter's training answers in the target's words: so it can follow the target's text (`synced`)."""
    seed: int = 0
    models: tuple[Literal["target", "drafter"], ...] = ("target", "drafter")
    """Which to make; `[]` makes none and judges those that lie in `out`."""
    device: str = "auto"

    def __post_init__(self) -> None:
        """Raise ConfigError for a world without the two splits."""
        if min(self.world.sequences.get(split, 0) for split in SPLITS) < 1:
            raise configs.ConfigError(
                f"world.sequences needs 1 or more of {' and '.join(SPLITS)}, got {self.world.sequences}; add them"
            )


def train(config: TrainConfig) -> list[Row]:
    """Scenes, vocabulary, the models, weights in bfloat16 under `config.out`, figures on held-out sequences."""
    device = _device(config.device)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("high")

    # vocabulary and held-out scenes
    tokenizer = train_tokenizer(config.shape.vocabulary, seed=config.seed)
    heldout = make_scenes(config.world, SPLITS[1])

    # models
    makers = {"target": train_target, "drafter": train_drafter}
    if config.models:
        scenes = make_scenes(config.world, SPLITS[0])
        for name in config.models:
            makers[name](config, scenes, tokenizer, device)

    # figures of both models as they lie in the folder: what is judged is what is shipped
    lying = [name for name in makers if (config.out / name).is_dir()]
    rows = [row for name in lying for row in evaluate_model(name, config.out / name, heldout, device=device)]
    write_results(config.out, rows, provenance() | {"config": configs.dump(config)})
    return rows


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise configs.ConfigError(f"device: {name}: torch finds no GPU; set device to cpu")
    return torch.device(name)


def train_target(config: TrainConfig, scenes: Scenes, tokenizer: Tokenizer, device: torch.device) -> None:
    """Teach the video model its ten answers per clip, and save it."""
    torch.manual_seed(config.seed)
    told = [[target_answer(f, q) for q in range(len(QUESTIONS))] for f in scenes.facts]
    blocks = pack([text_ids(tokenizer, AFTER_VIDEO.format(question=q)) for q in QUESTIONS], told, tokenizer)
    labels = np.concatenate([scenes.motion, scenes.sight], 1)
    start = with_bos(tokenizer, BEFORE_VIDEO)
    data = Material.on(device, frames=scenes.video, blocks=blocks, facts=labels, before=start)
    target = new_target(config.shape)
    learner = Learner(target, video_tokens, (*MOTION_CLASSES, *SIGHT_CLASSES), config.shape.vocabulary).to(device)
    fit(learner, data, config.target, seed=config.seed, label="target")
    save_target(target, tokenizer, config.out / "target")


def train_drafter(config: TrainConfig, scenes: Scenes, tokenizer: Tokenizer, device: torch.device) -> None:
    """Teach the event model to speak of motion, with a share of the target's sentences, and save it."""
    torch.manual_seed(config.seed + 1)
    told = _drafter_texts(scenes, config.target_style, config.seed)
    before, after = PROMPT.split("<event>")
    blocks = pack([text_ids(tokenizer, after.format(question=q)) for q in QUESTIONS], told, tokenizer)
    start = with_bos(tokenizer, before.format(system=SYSTEM))
    data = Material.on(device, frames=scenes.events, blocks=blocks, facts=scenes.motion, before=start)
    drafter = new_drafter(config.shape)
    learner = Learner(drafter, drafter_visual, MOTION_CLASSES, config.shape.vocabulary).to(device)
    fit(learner, data, config.drafter, seed=config.seed + 1, label="drafter")
    save_drafter(drafter, config.out / "drafter", dtype=torch.bfloat16)
    save_tokenizer(tokenizer, config.out / "drafter")


def fit(learner: Learner, data: Material, schedule: Schedule, *, seed: int, label: str) -> None:
    """Train for `schedule.steps` steps of random clips and random questions; raises on a loss that is not finite."""
    device, clips, asked = data.frames.device, len(data.frames), data.ids.shape[1]
    decay = [p for p in learner.parameters() if p.ndim > 1]
    plain = [p for p in learner.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": schedule.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98), fused=device.type == "cuda")
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_at(step, schedule))
    draw = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for step in progress(range(schedule.steps), total=schedule.steps, label=label):
        chosen = torch.randint(clips, (schedule.clips,), generator=draw).to(device)
        questions = torch.randperm(asked, generator=draw)[: schedule.questions].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss, log = learner(data, chosen, questions, fact_weight=schedule.fact_weight)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimiser.step()
        rate.step()
        if step % 250 == 0 or step + 1 == schedule.steps:
            _report(label, step, log, time.perf_counter() - start)


def rate_at(step: int, schedule: Schedule) -> float:
    """Share of the learning rate at a step."""
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    part = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return 0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * part)))


def _report(label: str, step: int, log: dict[str, torch.Tensor], seconds: float) -> None:
    loss = float(log["loss"].detach())
    if not np.isfinite(loss):
        raise FloatingPointError(f"{label}: loss is {loss} at step {step}; lower the learning rate")
    asked, seen = (" ".join(f"{v:.2f}" for v in log[k].tolist()) for k in ("facts_asked", "facts_seen"))
    head = f"{label} step {step}: loss {loss:.4f}, tokens {float(log['token_accuracy']):.3f}, {seconds:.0f} s"
    print(f"{head}\n  asked {asked}\n  seen  {seen}", flush=True)


def _drafter_texts(scenes: Scenes, share: float, seed: int) -> list[list[str]]:
    draw = np.random.default_rng(seed).random((len(scenes.facts), len(QUESTIONS))) < share
    return [
        [target_answer(f, q) if borrowed[q] else drafter_answer(f, q) for q in range(len(QUESTIONS))]
        for f, borrowed in zip(scenes.facts, draw, strict=True)
    ]


def _overrides(words: list[str]) -> list[str]:
    """`--section.field value` pairs as `section.field=value`."""
    if len(words) % 2 or not all(word.startswith("--") for word in words[::2]):
        raise configs.ConfigError(f"overrides are pairs `--section.field value`, got {' '.join(words)}; see --help")
    return [f"{name[2:]}={value}" for name, value in zip(words[::2], words[1::2], strict=True)]


def main(arguments: list[str]) -> int:
    """Command line: the config file, then overrides."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        rows = train(configs.load(TrainConfig, Path(arguments[0]), _overrides(arguments[1:])))
    except configs.UserError as error:
        print(f"xmsd: error: {error}", file=sys.stderr)
        return 2
    for row in rows:
        print({k: v for k, v in asdict(row).items() if v not in (None, "", {})})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
