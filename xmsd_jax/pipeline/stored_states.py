"""What storing states in 8 bits costs: the error of states, and walks of the same answers from either form."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from xmsd_jax.config import ConfigError, dump
from xmsd_jax.data import store_layout as layout
from xmsd_jax.data.batches import answer_lengths
from xmsd_jax.data.manifest import States
from xmsd_jax.data.recode import recode
from xmsd_jax.data.store import Store
from xmsd_jax.metrics.acceptance import Anchors
from xmsd_jax.metrics.counted import ratio_of_sums
from xmsd_jax.pipeline.evaluate import STAGE, EvaluateConfig, evaluate
from xmsd_jax.pipeline.judged import Judged, read_judged
from xmsd_jax.runs import Row, Run, provenance, write_results

FORMS: tuple[States, States] = ("native", "float8")
KEPT = ("tau_offline", "n_free_offline", "accept@0.90", "top1")
DRAWS, LEVEL = 2000, 0.95


@dataclass(frozen=True, kw_only=True)
class StoredStatesConfig:
    """Which answers are judged from both forms of the store, and with which adapters.

    evaluate: as `xmsd evaluate` takes it; its store is the native one, its adapters are left out. trained_on: form of
    the states that adapters were trained on ("native", "float8") -> their folder.
    """

    evaluate: EvaluateConfig
    trained_on: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ConfigError for a form that is none."""
        if wrong := sorted(set(self.trained_on) - set(FORMS)):
            raise ConfigError(f"trained_on: forms are {' and '.join(FORMS)}, got {', '.join(wrong)}")


def run(config: StoredStatesConfig, run_dir: Path, fresh: bool = False) -> list[Row]:
    """Code the stores anew as float8, judge from both forms, write results.json with the differences."""
    opened = Run.open(run_dir, config)
    native, splits = config.evaluate.store, config.evaluate.splits
    for split in (config.evaluate.training, *splits):
        recode(native / split, opened.path / "float8" / split, "float8")
    stores = {"native": native, "float8": opened.path / "float8"}
    rows = [row for split in splits for row in state_rows(split, *(Store.open(stores[f] / split) for f in FORMS))]
    for trained, adapters in config.trained_on.items():
        judged: dict[str, dict[str, dict[str, Judged]]] = {}
        for form, root in stores.items():
            one = Run.open(opened.path / f"trained_{trained}_read_{form}", config)
            own = replace(config.evaluate, store=root, adapters=adapters)
            about = {"states": form, "trained_on": trained}
            rows += [_about(row, about) for row in evaluate(own, one, fresh) if row.metric in KEPT]
            judged[form] = {s: read_judged(one.path / STAGE, s, Store.open(root / s).manifest) for s in splits}
        for split in splits:
            sequences = _sequences(Store.open(native / split))
            settings = {"clips": config.evaluate.names.get(split, split), "trained_on": trained}
            rows += walk_rows(judged["native"][split], judged["float8"][split], sequences, settings)
    write_results(opened.path, rows, provenance() | {"config": dump(config)})
    print(table(rows), flush=True)
    print(f"results: {opened.path}/results.json", flush=True)
    return rows


def state_rows(split: str, native: Store, coded: Store) -> list[Row]:
    """How far the states of each field are from the native ones, over all positions within answers.

    Rounding to bfloat16 stands beside it where the native states are finer: the 7B pair's are bfloat16 as they come.
    """
    rows, sequences = [], _sequences(native)
    for name in layout.STATES:
        true, found = (np.asarray(store.read(name), np.float32) for store in (native, coded))
        inside = np.arange(true.shape[1]) < answer_lengths(native, name)[:, None]
        forms = {"float8": found}
        if native.manifest.dtype == "float32":
            forms["bfloat16"] = true.astype(ml_dtypes.bfloat16).astype(np.float32)
        for form, states in forms.items():
            cosine, error = state_errors(true, states)
            figures = {"state_cosine": cosine, "state_relative_error": error}
            if name == "target_hidden":
                figures["emits_own_token"] = _emitted(states, native.head()) == native.read("target_ids")
            settings = {"clips": split, "states": form, "native": native.manifest.dtype, "width": true.shape[2]}
            for metric, values in figures.items():
                mean = ratio_of_sums((values * inside).sum(1), inside.sum(1), sequences=sequences)
                estimate = {"value": mean.value, "low": mean.low, "high": mean.high, "n": int(inside.sum())}
                rows.append(Row(row=name, metric=metric, settings=settings, **estimate))
            least = float(cosine[inside].min())
            rows.append(Row(row=name, metric="state_cosine_least", value=least, settings=settings))
        codes = layout.stored_row_bytes(coded.manifest, name) + true.shape[1]
        share = codes / layout.row_bytes(native.manifest, name)
        about = {"clips": split, "states": "float8", "native": native.manifest.dtype, "width": true.shape[2]}
        rows.append(Row(row=name, metric="bytes_share", value=share, settings=about))
    return rows


def _emitted(states: NDArray[Any], head: NDArray[Any]) -> NDArray[np.int64]:
    """The ids that states [n, t, d] emit; row by row, as the logits are v / d times as large."""
    weight = np.asarray(head, np.float32).T
    return np.stack([(row @ weight).argmax(-1) for row in states])


def state_errors(true: NDArray[Any], found: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosine and relative error |found - true| / |true| of each vector of [n, t, d], [n, t]; 1 and 0 for zeros."""
    length, other = (np.linalg.norm(states.astype(np.float64), axis=-1) for states in (true, found))
    dot = np.einsum("ntd,ntd->nt", true.astype(np.float64), found.astype(np.float64))
    real = length > 0
    cosine = np.divide(dot, length * other, out=np.ones_like(dot), where=real & (other > 0))
    apart = np.linalg.norm(found.astype(np.float64) - true, axis=-1)
    return cosine, np.divide(apart, length, out=np.zeros_like(dot), where=real)


def walk_rows(
    native: Mapping[str, Judged], coded: Mapping[str, Judged], sequences: list[str], settings: Mapping[str, Any]
) -> list[Row]:
    """For every drafter: tau from float8 minus tau from native, and how many walks have as many iterations."""
    rows = []
    for name, one in native.items():
        other = coded[name]
        if one.anchors is not None and other.anchors is not None:
            for gamma in range(1, one.anchors.gamma + 1):
                about = {**settings, "gamma": gamma}
                rows.append(_difference(name, one.anchors, other.anchors, sequences, about))
        if one.prefix is not None and other.prefix is not None:
            equal = float((one.prefix.free == other.prefix.free).mean())
            rows.append(Row(row=name, metric="n_free_equal_share", value=equal, n=len(sequences), settings=settings))
    return rows


def _difference(name: str, native: Anchors, coded: Anchors, sequences: list[str], settings: Mapping[str, Any]) -> Row:
    """Paired: the same sequences are drawn for both."""
    walks = [one.walk(settings["gamma"]) for one in (native, coded)]
    names, places = np.unique(sequences, return_inverse=True)
    counts = np.stack([np.bincount(places, weights=x) for w in walks for x in (w.emitted, w.iterations)], 1)
    draws = np.random.default_rng(0).integers(0, len(names), (DRAWS, len(names)))
    drawn = counts[draws].sum(1)
    spread = np.quantile(drawn[:, 2] / drawn[:, 3] - drawn[:, 0] / drawn[:, 1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    total = counts.sum(0)
    several = len(names) > 1
    return Row(
        row=name,
        metric="tau_offline_difference",
        value=float(total[2] / total[3] - total[0] / total[1]),
        low=float(spread[0]) if several else None,
        high=float(spread[1]) if several else None,
        n=len(sequences),
        baseline="native states",
        settings={**settings, "same_iterations": float((walks[0].iterations == walks[1].iterations).mean())},
    )


def table(rows: list[Row]) -> str:
    """The difference at the largest gamma, one line a drafter."""
    lines = [f"{'':24} {'clips':10} {'trained on':10} {'tau diff.':>9} {'interval':>18} {'same walks':>10}"]
    found = [row for row in rows if row.metric == "tau_offline_difference"]
    largest = max((row.settings["gamma"] for row in found), default=0)
    for row in (row for row in found if row.settings["gamma"] == largest):
        interval = "-" if row.low is None else f"{row.low:+.4f}..{row.high:+.4f}"
        about = row.settings
        lines.append(
            f"{row.row:24} {about['clips']:10} {about['trained_on']:10} {row.value:>+9.4f} {interval:>18} "
            f"{about['same_iterations']:>10.1%}"
        )
    return "\n".join(lines)


def _about(row: Row, about: Mapping[str, Any]) -> Row:
    return replace(row, settings={**row.settings, **about})


def _sequences(store: Store) -> list[str]:
    names = store.names["sequences"]
    return [names[number] for number in store.read("sequence")]
