"""The adapters of a run by their row names: trained ones from their folders, and the two identities."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmsd_jax.adapters.files import PASSPORT, AdapterError, check_fits, load_adapter
from xmsd_jax.adapters.interface import Adapter, Pairing
from xmsd_jax.adapters.kinds import CONTROLS
from xmsd_jax.adapters.rollout import Mode
from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.data.batches import Pairs, read_index, read_pairs, state_bytes
from xmsd_jax.data.manifest import Manifest
from xmsd_jax.data.store import Store
from xmsd_jax.pipeline.rows import drafter_name
from xmsd_jax.training.engine import Engine
from xmsd_jax.training.sources import ResidentSource


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """An adapter as a drafter: `pairing` says which drafter states it reads; None where it reads none."""

    name: str
    adapter: Adapter
    pairing: Pairing | None

    @property
    def mode(self) -> Mode:
        """How it drafts: with the states that it was trained on."""
        return "own" if self.pairing == "index" else "synced"

    @property
    def early(self) -> bool:
        """Whether it drafts in phase 1 (offset 0) and not in phase 2."""
        return self.adapter.facts.offset == 0


def load_trained(root: Path | None, manifest: Manifest) -> dict[str, Trained]:
    """The identities, and every adapter in `root` and its folders, in the order of their names.

    Raises:
        AdapterError: none in `root`, two of one name, or one that does not fit the store's manifest.
    """
    controls: dict[str, Pairing | None] = {"identity(drafter, 0)": "index", "identity(target, 1)": None}
    found = [Trained(name=name, adapter=CONTROLS[name](), pairing=pairing) for name, pairing in controls.items()]
    if root is not None:
        folders = sorted(path.parent for path in Path(root).rglob(PASSPORT))
        if not folders:
            raise AdapterError(f"{root}: holds no trained adapter; run `xmsd train` or `xmsd study` first")
        found += [_load(folder, manifest) for folder in folders]
    names = [one.name for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise AdapterError(f"{root}: holds {', '.join(twice)} more than once; keep one of each")
    return {one.name: one for one in found}


def passports(root: Path | None) -> list[str]:
    """The texts of all passports in a folder of trained adapters: what a stage that uses them depends on."""
    return [] if root is None else [path.read_text(encoding="utf-8") for path in sorted(Path(root).rglob(PASSPORT))]


def needed(passport: Any, manifest: Manifest) -> dict[str, Any]:
    """What a passport must say to fit a store; only the models whose states it reads."""
    models = ("target",) if passport.pairing is None else ("target", "drafter")
    return {
        "width": manifest.width,
        "vocabulary": manifest.vocabulary["real"],
        "head_fingerprint": manifest.head_fingerprint,
        "revisions": {which: manifest.revisions[which] for which in models},
    }


def token_head(store: Store) -> TokenHead:
    """The target's head of a store, float32, on the default device."""
    return TokenHead.of(jnp.asarray(np.asarray(store.head(), np.float32)), store.manifest.vocabulary["real"])


def chosen(found: Mapping[str, Trained], names: Iterable[str]) -> list[Trained]:
    """Those adapters. Raises AdapterError naming one that was not trained."""
    names = list(names)
    missing = [name for name in names if name not in found]
    if missing:
        raise AdapterError(f"no trained adapter {', '.join(missing)}; there are {', '.join(found)}: train it first")
    return [found[name] for name in names]


def _load(folder: Path, manifest: Manifest) -> Trained:
    saved = load_adapter(folder)
    check_fits(saved, needed(saved.passport, manifest), where="the store")
    name = drafter_name(saved.passport.kind, saved.passport.pairing)
    return Trained(name=name, adapter=saved.adapter, pairing=saved.passport.pairing)


def adapter_pairs(engine: Engine, store: Store, one: Trained) -> Pairs:
    """The answers as an adapter reads them: states in the memory of an accelerator where they fit, else of the host."""
    inputs = one.adapter.facts.inputs
    if jax.default_backend() == "cpu" or not engine.is_resident(state_bytes(store, one.pairing)):
        return read_pairs(store, inputs=inputs, pairing=one.pairing, as_stored=engine.dtype != jnp.float32)
    index = read_index(store, inputs=inputs, pairing=one.pairing)
    return ResidentSource.of_store(store, index, one.pairing, engine.mesh()).pairs()
