"""Stage `evaluate`: trained adapters and control rows on a store's held-out answers; hidden states, tokens, walks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xmsd_jax import __version__
from xmsd_jax.adapters.interface import Streams
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.config import ConfigError, UserError, dump
from xmsd_jax.data.batches import Pairs
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.store import Store
from xmsd_jax.decoding.anchors import adapter_anchors, adapter_free, in_batches, teacher_forced
from xmsd_jax.decoding.ports import Drafter
from xmsd_jax.decoding.text_anchors import text_anchors, text_free
from xmsd_jax.metrics.acceptance import Anchors
from xmsd_jax.metrics.counted import Estimate, ratio_of_sums
from xmsd_jax.metrics.hidden import hidden_metrics, joined
from xmsd_jax.metrics.tokens import token_metrics
from xmsd_jax.pipeline.answers import text_prompt
from xmsd_jax.pipeline.curves import share_row
from xmsd_jax.pipeline.fitted import fit_drafters
from xmsd_jax.pipeline.judged import Judged, write_index, write_judged
from xmsd_jax.pipeline.train import SAME_PAIR
from xmsd_jax.pipeline.trained import Trained, adapter_pairs, load_trained, passports, token_head
from xmsd_jax.runs import Row, Run, progress, provenance, read_results, stage_key, write_results
from xmsd_jax.training.engine import Engine

STAGE = "evaluation"
OFFSETS = (0, 1)
TABLE = ("accept@0.90", "top1", "n_free_offline", "tau_offline")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is judged, and on which answers.

    store: folder with one store a split, made by `xmsd extract`; training: the split that text drafters are fitted on;
    splits: judged, of other sequences; adapters: folder of trained adapters, searched through; null judges the control
    rows alone. gamma: ids drafted at every anchor, the largest that a walk can have; prefill_draft_len: ids drafted in
    phase 1; adapter_gamma: the same as gamma for adapters alone, which cost more; null takes gamma. order: longest
    context of the n-gram. names: split -> its name in words, as tables print it.
    engine: on an accelerator states lie in its memory where they fit; compute is float32, in which a walk is that of a
    live run in float32 (bfloat16 is faster at full width).
    """

    store: Path
    training: str = "train"
    splits: tuple[str, ...] = ("test",)
    adapters: Path | None = None
    gamma: int = 8
    adapter_gamma: int | None = None
    prefill_draft_len: int = 12
    order: int = 8
    names: dict[str, str] = field(default_factory=dict)
    engine: Engine = field(default_factory=lambda: Engine(compute="float32"))

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes below one, and for a training split that is judged."""
        for name in ("gamma", "prefill_draft_len", "order"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.adapter_gamma is not None and self.adapter_gamma < 1:
            raise ConfigError(f"adapter_gamma: must be at least 1, or null, got {self.adapter_gamma}")
        if not self.splits or self.training in self.splits:
            raise ConfigError(f"splits: at least one, not {self.training}, which is fitted on; got {list(self.splits)}")


def run(config: EvaluateConfig, run_dir: Path, fresh: bool = False) -> list[Row]:
    """Judge every drafter; writes results.json and the anchors that proxy and benchmark read."""
    run = Run.open(run_dir, config)
    rows = evaluate(config, run, fresh)
    write_results(run.path, rows, provenance() | {"config": dump(config)})
    print(table(rows))
    print(f"results: {run.path}/results.json", flush=True)
    return rows


def evaluate(config: EvaluateConfig, run: Run, fresh: bool = False) -> list[Row]:
    """The stage inside an open run."""
    training = Store.open(config.store / config.training)
    stored = training.manifest.to_json()
    same_pair = {name: stored[name] for name in SAME_PAIR}
    stores = {split: Store.open(config.store / split, expect=same_pair) for split in config.splits}
    key = stage_key(
        replace(config, store=Path(), adapters=None),
        __version__,
        *(store.manifest.fingerprint for store in (training, *stores.values())),
        *passports(config.adapters),
    )
    with run.stage(STAGE, key, fresh) as stage:
        if not stage.reused:
            write_results(stage.path, _judge(config, stage.path, training, stores), provenance())
    return read_results(stage.path)[0]


def _judge(config: EvaluateConfig, root: Path, training: Store, stores: Mapping[str, Store]) -> list[Row]:
    adapters = load_trained(config.adapters, training.manifest)
    text = fit_drafters(training, config.order, training.manifest.vocabulary["real"])
    text = {name: drafter for name, drafter in text.items() if name != "prompt-lookup"}  # needs the target's tokenizer
    rows: list[Row] = []
    for split, store in stores.items():
        _check_held_out(training, store)
        found, judged = _judge_split(config, store, split, adapters, text)
        write_judged(root, split, judged)
        rows += found
    write_index(root, {split: store.manifest for split, store in stores.items()}, [*text, *adapters])
    return rows


def _check_held_out(training: Store, store: Store) -> None:
    shared = set(training.names["sequences"]) & set(store.names["sequences"])
    if shared:
        raise UserError(
            f"{store.path}: holds answers about {', '.join(sorted(shared)[:3])}, which {training.path} holds too; "
            "judge on sequences that nothing was fitted on"
        )


def _judge_split(
    config: EvaluateConfig,
    store: Store,
    split: str,
    adapters: Mapping[str, Trained],
    text: Mapping[str, Drafter],
) -> tuple[list[Row], dict[str, Judged]]:
    head, sequences = token_head(store), _sequences(store)
    settings = {
        "clips": config.names.get(split, split),
        "max_new_tokens": store.manifest.max_new_tokens,
        "dtype": store.manifest.dtype,
    }
    about = _About(config=config, sequences=sequences, settings=settings)
    judged, rows = {}, []
    for name, drafter in text.items():
        judged[name] = _judge_text(config, store, drafter)
        rows += about.walks(name, judged[name])
    for one in progress(adapters.values(), total=len(adapters), label=f"evaluate {split}"):
        pairs = adapter_pairs(config.engine, store, one)
        judged[one.name] = _judge_adapter(config, one, head, pairs)
        rows += about.states(one, head, pairs)
        rows += about.walks(one.name, judged[one.name])
        if not one.early:
            gamma = config.adapter_gamma or config.gamma
            forced = teacher_forced(one.adapter, head, pairs, gamma=gamma, compute=config.engine.dtype)
            rows.append(about.shares(one.name, forced, "teacher-forced, all anchors"))
    return rows, judged


def _judge_text(config: EvaluateConfig, store: Store, drafter: Drafter) -> Judged:
    answers = [store.token_ids("target", row) for row in range(store.rows)]
    prompts = [text_prompt(QUESTIONS[question]) for question in store.read("question")]
    length = store.manifest.max_new_tokens
    return Judged(
        anchors=text_anchors(drafter, answers, prompts, gamma=config.gamma, positions=length),
        prefix=text_free(drafter, answers, prompts, draft_len=config.prefill_draft_len),
    )


def _judge_adapter(config: EvaluateConfig, one: Trained, head: TokenHead, pairs: Pairs) -> Judged:
    if one.early:
        free = partial(adapter_free, draft_len=config.prefill_draft_len, compute=config.engine.dtype)
        return Judged(prefix=free(one.adapter, head, pairs))
    gamma = config.adapter_gamma or config.gamma
    rolled = partial(adapter_anchors, mode=one.mode, gamma=gamma, compute=config.engine.dtype)
    return Judged(anchors=rolled(one.adapter, head, pairs))


@dataclass(frozen=True, kw_only=True)
class _About:
    """Makes rows of results.json: what all rows of a split share."""

    config: EvaluateConfig
    sequences: Sequence[str]
    settings: Mapping[str, Any]

    def walks(self, name: str, judged: Judged) -> list[Row]:
        """n_free of phase 1, walk tau at every gamma and S_k of phase 2."""
        rows = []
        if judged.prefix is not None:
            free = ratio_of_sums(judged.prefix.free, sequences=self.sequences)
            rows.append(self.row(name, "n_free_offline", free, prefill_draft_len=judged.prefix.drafted))
        if judged.anchors is not None:
            for gamma in range(1, judged.anchors.gamma + 1):
                rows.append(
                    self.row(name, "tau_offline", judged.anchors.tau(gamma, sequences=self.sequences), gamma=gamma)
                )
            rows.append(self.shares(name, judged.anchors, "rolled out, all anchors"))
        return rows

    def states(self, one: Trained, head: TokenHead, pairs: Pairs) -> list[Row]:
        """Hidden-state and token metrics at both offsets; teacher-forced."""
        rows = []
        for offset, mask in zip(OFFSETS, (pairs.same_mask, pairs.next_mask), strict=True):
            counts = _counts(one, head, pairs, mask, offset, self.config.engine.dtype)
            for metric, (top, bottom) in counts.items():
                estimate = ratio_of_sums(top, bottom, sequences=self.sequences)
                rows.append(self.row(one.name, metric, estimate, offset=offset))
        return rows

    def shares(self, name: str, anchors: Anchors, how: str) -> Row:
        """S_k as one row: the curve stands in its settings."""
        return share_row(name, anchors, self.sequences, {**self.settings, "how": how})

    def row(self, name: str, metric: str, estimate: Estimate, **more: Any) -> Row:
        """One number with its interval."""
        return Row(
            row=name,
            metric=metric,
            value=estimate.value,
            low=estimate.low,
            high=estimate.high,
            n=estimate.n,
            settings={**self.settings, **more},
        )


def _counts(one: Trained, head: TokenHead, pairs: Pairs, mask: np.ndarray, offset: Any, compute: Any) -> dict[str, Any]:
    """Per-answer counts of every metric at one offset, batch by batch."""
    found = []
    for rows, predicted in _predicted(one, pairs, compute):
        part = pairs.take(rows)
        true = jnp.asarray(part.target, jnp.float32)
        hidden = hidden_metrics(jnp.asarray(predicted), true, mask[rows], offset=offset)
        tokens = token_metrics(
            jnp.asarray(predicted),
            head.weight,
            jnp.asarray(part.target_ids),
            mask[rows],
            vocabulary=int(head.vocabulary),
            offset=offset,
        )
        found.append({**hidden, **tokens})
    return joined(found)


def _predicted(one: Trained, pairs: Pairs, compute: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The adapter's teacher-forced output, batch by batch: rows and float32[b, t, d]."""
    graph, parameters = nnx.split(one.adapter)

    @jax.jit
    def predict(parameters: Any, streams: Streams, mask: jax.Array) -> jax.Array:
        adapter: Any = nnx.merge(graph, parameters)
        return adapter(streams, mask).astype(jnp.float32)

    positions = np.arange(pairs.target.shape[1])
    done = 0
    for rows in in_batches(len(pairs)):
        both = Streams(*(None if x is None else jnp.asarray(x[rows], compute) for x in (pairs.drafter, pairs.target)))
        real = jnp.asarray(positions < pairs.drafter_len[rows][:, None])
        predicted = np.asarray(predict(parameters, both, real))
        count = min(len(rows), len(pairs) - done)
        done += count
        yield rows[:count], predicted[:count]


def _sequences(store: Store) -> list[str]:
    names = store.names["sequences"]
    return [names[number] for number in store.read("sequence")]


def table(rows: Sequence[Row]) -> str:
    """The figures to look at first, one line a drafter and split: its own offset, the largest gamma."""
    lines = [f"{'':24} {'split':10} {'top1 same':>9} {'top1 next':>9} {'acc@.90':>8} {'free':>6} {'tau':>6}"]
    keys = dict.fromkeys((row.row, row.settings["clips"]) for row in rows)
    for name, split in keys:
        own = [row for row in rows if row.row == name and row.settings["clips"] == split]
        cells = [
            _told(own, "top1", offset=0),
            _told(own, "top1", offset=1),
            _told(own, "accept@0.90", offset=0),
            _told(own, "n_free_offline"),
            _told(own, "tau_offline", gamma=max((row.settings.get("gamma", 0) for row in own), default=0)),
        ]
        widths = (9, 9, 8, 6, 6)
        lines.append(f"{name:24} {split:10} " + " ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
    return "\n".join(lines)


def _told(rows: Sequence[Row], metric: str, **settings: Any) -> str:
    fitting = (r for r in rows if r.metric == metric and settings.items() <= dict(r.settings).items())
    value = next((row.value for row in fitting), None)
    return "-" if value is None else f"{value:.3f}"
