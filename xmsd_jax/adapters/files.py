"""A trained adapter on disk: `adapter.safetensors` (parameters by their NNX paths) and `adapter.json` (its passport).

The passport says what the adapter was trained on, so that it is refused where it does not fit: another width, another
vocabulary, another target head, states of other models, or the other pairing.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from xmsd_jax.adapters.interface import Adapter, Pairing
from xmsd_jax.adapters.kinds import outline
from xmsd_jax.config import ConfigError, UserError
from xmsd_jax.runs import write_text
from xmsd_jax.typed import Place, convert

WEIGHTS, PASSPORT = "adapter.safetensors", "adapter.json"
FORMAT, VERSION = "xmsd-adapter", 1
AGAIN = "train it again, or give the folder that `xmsd train` exported"


class AdapterError(UserError):
    """An adapter that is missing, damaged, or does not fit what it is used with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passport:
    """What an adapter is and what it was trained on.

    `pairing`: whose drafter states went with a target position; None for a kind that reads the target alone.
    `revisions`: fingerprints of the models ("target", "drafter"); `store`: of the training store's manifest;
    `vocabulary`: real ids; `head_fingerprint`: of the target's head; `training`: epoch, metric and value of the choice.
    """

    kind: str
    width: int
    blocks: int | None
    pairing: Pairing | None
    vocabulary: int
    head_fingerprint: str
    revisions: Mapping[str, str]
    store: str
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SavedAdapter:
    """An adapter with its passport, read from `folder`."""

    adapter: Adapter
    passport: Passport
    folder: Path


def save_adapter(folder: Path, adapter: Adapter, passport: Passport) -> Path:
    """Write both files, the passport last: a folder that has one is whole. Returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PASSPORT).unlink(missing_ok=True)
    part = folder / (WEIGHTS + ".part")
    save_file({name: np.asarray(value) for name, value in named_parameters(adapter).items()}, part)
    part.replace(folder / WEIGHTS)
    content = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(passport)}
    write_text(folder / PASSPORT, json.dumps(content, indent=1, sort_keys=True) + "\n")
    return folder


def load_adapter(folder: Path) -> SavedAdapter:
    """Read an exported adapter.

    Raises:
        AdapterError: files missing or cut off, another format, parameters missing, unknown, not finite or of another
            shape.
    """
    folder = Path(folder)
    passport = read_passport(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{folder / WEIGHTS}: cannot be read ({error}); {AGAIN}") from None
    try:
        adapter = outline(passport.kind, passport.width, blocks=passport.blocks)
    except ConfigError as error:
        raise AdapterError(f"{folder / PASSPORT}: {error}; {AGAIN}") from None
    assign(adapter, tensors, folder / WEIGHTS)
    return SavedAdapter(adapter=adapter, passport=passport, folder=folder)


def read_passport(folder: Path) -> Passport:
    """Read `adapter.json`, or raise AdapterError."""
    file = Path(folder) / PASSPORT
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{file}: cannot be read ({error}); {AGAIN}") from None
    found = (content.pop("format", None), content.pop("version", None)) if isinstance(content, dict) else None
    if found != (FORMAT, VERSION):
        raise AdapterError(f"{file}: is not an {FORMAT} file of version {VERSION}; {AGAIN}")
    try:
        return convert(Passport, content, Place(str(file)))
    except ConfigError as error:
        raise AdapterError(f"{error}; {AGAIN}") from None


def check_fits(saved: SavedAdapter, expected: Mapping[str, Any], *, where: str) -> None:
    """Refuse an adapter that was trained for something else.

    Args:
        saved: the adapter.
        expected: fields of the passport that must hold; of a mapping, the keys that `expected` gives.
        where: what it is used with, in words.

    Raises:
        AdapterError: naming every field that differs, with both values.
    """
    found, wanted = _by_field(dataclasses.asdict(saved.passport)), _by_field(expected)
    different = [name for name, value in wanted.items() if found.get(name) != value]
    if different:
        told = "; ".join(f"{name} is {found.get(name)!r}, needed is {wanted[name]!r}" for name in different)
        raise AdapterError(f"{saved.folder}: the adapter does not fit {where}: {told}; train one on that store")


def _by_field(content: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted name, those of mappings one level down too."""
    flat = {}
    for name, value in content.items():
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, Mapping) else {name: value}
    return flat


def named_parameters(adapter: Adapter) -> dict[str, Any]:
    """Parameters by dotted NNX path ("blocks.0.down.kernel"), as JAX arrays."""
    return {_dotted(path): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(adapter, nnx.Param))}


def named_shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters by dotted NNX path; of an `outline` too."""
    return {_dotted(path): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(adapter, nnx.Param))}


def assign(adapter: Adapter, tensors: Mapping[str, np.ndarray], source: Path | str) -> None:
    """Put copies of tensors, by dotted path, into the parameters of an adapter or of an `outline`; all or none.

    Raises:
        AdapterError: names missing, unknown, not finite or of another shape, all in one line.
    """
    wanted = {name: (shape,) for name, shape in named_shapes(adapter).items()}
    if faults := parameter_faults(tensors, wanted):
        raise AdapterError(f"{source}: parameters do not fit: {'; '.join(faults)}; {AGAIN}")
    flat = nnx.to_flat_state(nnx.state(adapter, nnx.Param))
    filled = [(path, jnp.array(tensors[_dotted(path)], leaf.dtype)) for path, leaf in flat]
    nnx.update(adapter, nnx.from_flat_state(filled))


def parameter_faults(tensors: Mapping[str, np.ndarray], wanted: Mapping[str, Sequence[tuple[int, ...]]]) -> list[str]:
    """What is wrong with tensors that should have these names, and shapes out of these; empty if nothing is."""
    faults = [f"missing {name}" for name in sorted(set(wanted) - set(tensors))]
    faults += [f"unknown {name}" for name in sorted(set(tensors) - set(wanted))]
    for name in sorted(set(wanted) & set(tensors)):
        if tensors[name].shape not in wanted[name]:
            faults.append(f"{name} is {list(tensors[name].shape)}, needed is {list(wanted[name][0])}")
        elif not np.isfinite(np.asarray(tensors[name], np.float32)).all():
            faults.append(f"{name} is not finite")
    return faults


def _dotted(path: Iterable[Any]) -> str:
    return ".".join(map(str, path))
