"""What a pass over few tokens costs, and where its time goes: for `xmsd benchmark benchmark/live.yaml`.

A pass is timed as decoding does it: host to host, from ids to ids, with the crop that follows. The products alone run
as one CUDA graph over all layers: their weights are more than any cache holds, so each is read from memory again.
"""

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaModel

from torch_bridge.extract_speed import profiled_events
from torch_bridge.few_layer import takes_few
from torch_bridge.few_rows_linear import linear_few
from torch_bridge.fused_projections import fused_of
from torch_bridge.graphs import captured
from torch_bridge.nf4.linear import parallel_of
from torch_bridge.vlm import VLM, Session

GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("attention", ("attend", "flash", "fmha", "sdpa", "_splits", "_join")),
    ("products", ("gemm", "gemv", "nvjet", "cutlass", "splitk", "dot_kernel", "4bit", "matmul", "_multiply")),
    ("copies", ("memcpy", "memset")),
)
OTHERS = "norms, rotary, sums, argmax"
_COMPILED = ("triton_poi_", "triton_red_", "triton_per_")  # inductor's, named after all operations around them
_TOKEN = 7  # any real id: what is read does not change what a pass costs


def pass_seconds(session: Session, counts: Sequence[int], *, repeats: int) -> dict[int, list[float]]:
    """Seconds of passes over `count` tokens each, turn by turn, crop included; warm. Needs a prompt in the session."""
    times: dict[int, list[float]] = {count: [] for count in counts}
    for turn in range(repeats + 2):
        for count in counts:
            ids = [_TOKEN] * count
            _wait(session.vlm)
            start = perf_counter()
            session.emitted(session.verify(ids))
            session.crop(count)
            if turn > 1:
                times[count].append(perf_counter() - start)
    return times


def prompt_seconds(session: Session, question: str, clip: Any, *, repeats: int, riding: int) -> dict[str, list[float]]:
    """Seconds of vision, of the prompt's prefill, of one with `riding` drafted ids on it, and of one in two pieces."""
    visual = session.encode(clip)
    draft = [_TOKEN] * riding
    calls: dict[str, Callable[[], Any]] = {
        "vision": lambda: session.encode(clip),
        "prefill": lambda: session.emitted(session.prefill(question, visual)),
        "prefill riding": lambda: session.emitted(session.prefill(question, visual, draft)),
        "prefill riding late": lambda: session.emitted(session.prefill(question, visual, lambda: draft)),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            _wait(session.vlm)
            start = perf_counter()
            call()
            _wait(session.vlm)
            if turn:
                times[name].append(perf_counter() - start)
    return times


def product_seconds(vlm: VLM, count: int, *, repeats: int, own: bool = True) -> list[float]:
    """Seconds of all linear layers of the language model over `count` rows, nothing between them; the head is not one.

    On a GPU one graph, by events on its stream; dense ones as passes multiply, or, not `own`, by the library.
    """
    ours = own and all(takes_few(layer) for layer in vlm.language_model.layers)
    return _seconds_of(vlm, _products(vlm.language_model), count, repeats, linear_few if ours else functional.linear)


def head_seconds(vlm: VLM, count: int, *, repeats: int) -> list[float]:
    """Seconds of the head's product alone, over `count` rows; its weight is more than a cache holds."""
    return _seconds_of(vlm, [vlm.lm_head], count, repeats, functional.linear)


def _seconds_of(
    vlm: VLM,
    products: list[nn.Module | torch.Tensor],
    count: int,
    repeats: int,
    dense: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> list[float]:
    like = vlm.language_model.norm.weight
    inputs = {size: torch.randn(count, size, dtype=like.dtype, device=like.device) for size in _widths(products)}

    @torch.inference_mode()
    def work() -> None:
        for product in products:
            weight: Any = product.weight if type(product) is nn.Linear else product
            if isinstance(weight, nn.Module):
                weight(inputs[weight.in_features])  # type: ignore[index]
            else:
                dense(inputs[weight.shape[1]], weight)

    return _graph_seconds(vlm, work, repeats)


def kernel_groups(session: Session, count: int, *, passes: int = 5) -> dict[str, Any]:
    """Where a pass over `count` tokens spends its time on a GPU: microseconds by group, launches, and the table.

    `gaps` is the pass's wall clock less its kernels. On a CPU all is zero.
    """
    session.crop(_read(session, count))
    start = perf_counter()
    for _ in range(passes):
        session.crop(_read(session, count))
    wall = (perf_counter() - start) / passes

    def call() -> None:
        for _ in range(passes):
            session.crop(_read(session, count))

    table, kernels = profiled_events(call, session.vlm.device)
    spent, launches = dict[str, float](), 0
    for name, seconds, calls in kernels:
        spent[_group(name)] = spent.get(_group(name), 0.0) + seconds / passes * 1e6
        launches += calls
    inside = sum(spent.values())
    return {
        "wall_us": wall * 1e6,
        "groups_us": spent | ({"gaps": wall * 1e6 - inside} if kernels else {}),
        "launches": launches / passes,
        "table": table,
    }


def _group(kernel: str) -> str:
    name = kernel.lower()
    if name.startswith(_COMPILED):
        return OTHERS
    return next((group for group, words in GROUPS if any(word in name for word in words)), OTHERS)


def _read(session: Session, count: int) -> int:
    session.emitted(session.verify([_TOKEN] * count))
    return count


def _products(llama: LlamaModel) -> list[nn.Module | torch.Tensor]:
    """Every product of a pass: the fused weights where there are such, else the layers."""
    found: list[nn.Module | torch.Tensor] = []
    for layer in llama.layers:
        block: Any = layer
        for owner, parallel, last in (
            (block.self_attn, ("q_proj", "k_proj", "v_proj"), "o_proj"),
            (block.mlp, ("gate_proj", "up_proj"), "down_proj"),
        ):
            fused = fused_of(owner) if parallel_of(owner) is None else parallel_of(owner)
            found += [getattr(owner, name) for name in parallel] if fused is None else [fused]
            found.append(getattr(owner, last))
    return found


def _widths(products: Sequence[nn.Module | torch.Tensor]) -> set[int]:
    return {int(p.in_features) if isinstance(p, nn.Module) else p.shape[1] for p in products}  # type: ignore[arg-type]


def _graph_seconds(vlm: VLM, work: Callable[[], None], repeats: int) -> list[float]:
    if vlm.device.type != "cuda":
        return [_clocked(work) for _ in range(repeats + 1)][1:]
    graph, seconds = captured(vlm.device, work), []
    for _ in range(repeats + 1):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        marks[0].record()
        graph.replay()
        marks[1].record()
        marks[1].synchronize()
        seconds.append(marks[0].elapsed_time(marks[1]) / 1e3)
    return seconds[1:]


def _clocked(work: Callable[[], None]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def _wait(vlm: VLM) -> None:
    if vlm.device.type == "cuda":
        torch.cuda.synchronize(vlm.device)


def millis(times: Mapping[Any, Sequence[float]]) -> dict[str, list[float]]:
    """Seconds as milliseconds, keys as text: how they are kept in JSON."""
    return {str(key): [seconds * 1e3 for seconds in values] for key, values in times.items()}
