"""Loading a pair: the target and the drafter in one dtype, or quantised by one policy, on one device."""

from pathlib import Path

import torch

from torch_bridge.eventgpt import EventGPT, load_drafter
from torch_bridge.quantize import check_kept
from torch_bridge.video_llava import Target, load_target
from xmsd_jax.config import ConfigError
from xmsd_jax.data.events import EventFrames
from xmsd_jax.data.quantisation import Quantisation


def load_pair(
    target: Path,
    drafter: Path,
    *,
    dtype: str,
    device: str,
    drafter_device: str | None = None,
    threads: int | None = None,
    event_frames: EventFrames,
    vision_tower: Path | None = None,
    drafter_adaptor_passes: int = 1,
    quantisation: Quantisation | None = None,
) -> tuple[Target, EventGPT]:
    """Load both models of a pair from their folders.

    Args:
        target: a Video-LLaVA folder.
        drafter: an EventGPT folder.
        dtype: "float32" or "bfloat16".
        device: "cpu", "cuda" or "cuda:1".
        drafter_device: the drafter's own; None for the same.
        threads: of torch in this process from now on; None leaves them.
        event_frames: what the drafter sees of a clip's events.
        vision_tower: the drafter's CLIP folder where its config.json names none that is there.
        drafter_adaptor_passes: 2 applies the drafter's feature adaptor twice, as the study did.
        quantisation: of both models; what their weights take is printed then. None holds them in `dtype`.

    Raises:
        UserError: a folder that does not fit, a device that is not there, or models that do not share their ids.
    """
    for name, wanted in (("pair.device", device), ("drafter_device", drafter_device or device)):
        _check_device(name, torch.device(wanted))
    if threads is not None:
        torch.set_num_threads(threads)
    policy = quantisation or Quantisation()
    pair = (
        load_target(target, dtype=dtype, device=device, quantisation=policy),
        load_drafter(
            drafter,
            dtype=dtype,
            device=drafter_device or device,
            event_frames=event_frames,
            vision_tower=vision_tower,
            adaptor_passes=drafter_adaptor_passes,
            quantisation=policy,
        ),
    )
    if pair[0].eos_id != pair[1].eos_id:
        raise ConfigError(
            f"pair: both models must share their ids; </s> is {pair[0].eos_id} in {target} and {pair[1].eos_id} in "
            f"{drafter}: give models of one tokenizer"
        )
    check_kept(policy, [model.model for model in pair])
    if policy.format != "none":
        for model in pair:
            print(f"{model.name}: {model.quantisation}; {model.footprint}", flush=True)
    return pair


def _check_device(name: str, device: torch.device) -> None:
    if device.type != "cuda":
        return
    if not torch.cuda.is_available():
        raise ConfigError(f"{name}: {device}: torch finds no GPU; set {name} to cpu")
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise ConfigError(f"{name}: {device}: torch finds {count} GPU(s), from cuda:0 on; give one of them")
