"""What a store says about itself, and the comparison that keeps states of different runs from being mixed."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from xmsd_jax.config import UserError
from xmsd_jax.runs import claim_text, write_text

FORMAT = "xmsd-store"
VERSION = 2
FILE = "manifest.json"
CONTINUE = "run the same `xmsd extract` again, it continues where it stopped"
States = Literal["native", "float8"]
NEW_IN_2: Mapping[str, Any] = {"states": "native", "absent": []}
"""Fields of version 2, and what version 1 says by not having them. A manifest that needs none of them is still written
as version 1, so that its fingerprint, by which adapters know their store, and older programs go on."""


class StoreError(UserError):
    """A store that is missing, foreign, damaged, unfinished, or made by another run than the one asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that must agree before two sets of states may be compared (SEMANTICS "Store").

    `vocabulary` holds "real", "target" and "drafter" sizes; `batch` says how rows were put together, because in
    bfloat16 the composition of a batch can move a tie; `inputs` says what the models see of a clip beyond their own
    configuration (event frames); `norm_slot` is "post": states go straight into the head. `dtype` is that of the states
    as they are read; `states` says how they lie on disk (`xmsd_jax.data.float8`); `absent` names fields that the store
    has not, because what it was converted from had none.
    """

    models: Mapping[str, str]
    revisions: Mapping[str, str]
    quantisation: Mapping[str, str]
    norm_slot: str
    prompt_hash: str
    vocabulary: Mapping[str, int]
    head_fingerprint: str
    software: Mapping[str, str]
    batch: Mapping[str, Any]
    inputs: Mapping[str, Any]
    questions: tuple[str, ...]
    max_new_tokens: int
    width: int
    rows: int
    dtype: Literal["float32", "bfloat16"]
    shard_rows: int
    clips_fingerprint: str
    states: States = "native"
    absent: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the sizes that the arrays are made from."""
        for name in ("max_new_tokens", "width", "rows", "shard_rows"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise StoreError(f"manifest: {name} must be a whole number of at least 1; received {value!r}")
        if self.dtype not in ("float32", "bfloat16"):
            raise StoreError(f"manifest: dtype must be float32 or bfloat16; received {self.dtype!r}")
        if self.states not in get_args(States):
            raise StoreError(f"manifest: states must be {' or '.join(get_args(States))}; received {self.states!r}")
        object.__setattr__(self, "questions", tuple(self.questions))
        object.__setattr__(self, "absent", tuple(self.absent))

    @property
    def fingerprint(self) -> str:
        """sha256 of the whole content, 64 hex digits: which store an adapter or an evaluation was made from."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def values(self) -> dict[str, Any]:
        """Return every field as JSON values."""
        return {**dataclasses.asdict(self), "questions": list(self.questions), "absent": list(self.absent)}

    def to_json(self) -> dict[str, Any]:
        """Return what is written: the fields with the format's name and the oldest version that can say them."""
        values = self.values()
        if all(values[name] == default for name, default in NEW_IN_2.items()):
            return {"format": FORMAT, "version": 1, **{k: v for k, v in values.items() if k not in NEW_IN_2}}
        return {"format": FORMAT, "version": VERSION, **values}


def read_manifest(path: Path) -> Manifest:
    """Read `manifest.json` of the store at `path`.

    Raises:
        StoreError: no such file, not JSON, another format or version, fields missing or unknown.
    """
    file = path / FILE
    again = "run the extraction again, or give the folder of a split that `xmsd extract` wrote"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path}: not a store, {FILE} is missing: {again}") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{file}: cannot be read ({error}): {again}") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise StoreError(f"{file}: a foreign file, its format is not {FORMAT!r}: {again}")
    if (version := content.pop("version", None)) not in (1, VERSION):
        raise StoreError(f"{file}: version {version!r}, this program reads 1 and {VERSION}: {again}")
    content = content if version == VERSION else {**NEW_IN_2, **content}
    names = {field.name for field in dataclasses.fields(Manifest)}
    if wrong := sorted(names.symmetric_difference(content)):
        raise StoreError(f"{file}: fields missing or unknown: {', '.join(wrong)}: {again}")
    return Manifest(**content)


def require(path: Path, found: Manifest, expected: Mapping[str, Any], remedy: str) -> None:
    """Compare the named fields; a mapping is compared on the keys that `expected` gives.

    Raises:
        StoreError: every field that differs, with both values, and `remedy`.
    """
    stored, wanted = found.values(), json.loads(json.dumps(dict(expected)))
    if unknown := sorted(set(wanted) - set(stored)):
        raise StoreError(f"a manifest has no field {', '.join(unknown)}; fields: {', '.join(stored)}")
    different = [line for name, value in wanted.items() for line in _differences(name, stored[name], value)]
    if different:
        raise StoreError(f"{path}: the store does not fit: {'; '.join(different)}: {remedy}")


def write_json(file: Path, content: Any) -> None:
    """Write JSON so that a kill leaves the old file or the new one, never a part."""
    write_text(file, _json(content))


def claim_json(file: Path, content: Any) -> None:
    """Write JSON unless the file is there already: of several processes one writes it, whole; the others leave it."""
    claim_text(file, _json(content))


def read_json(file: Path) -> Any:
    """Read a JSON file of the store, or raise StoreError."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{file}: cannot be read ({error}): {CONTINUE}") from None


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)


def _differences(name: str, stored: Any, wanted: Any) -> list[str]:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return [line for key in wanted for line in _differences(f"{name}.{key}", stored.get(key), wanted[key])]
    return [] if stored == wanted else [f"{name} is {stored!r}, expected {wanted!r}"]
