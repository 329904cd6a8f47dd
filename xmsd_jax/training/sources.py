"""Where an epoch's answers come from: a split that lies on the devices, or one that is read while training runs."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from xmsd_jax.data.batches import Index, Pairing, Pairs, state_bytes, state_fields
from xmsd_jax.data.store import Store
from xmsd_jax.data.stream import stream_rows
from xmsd_jax.training.engine import Engine
from xmsd_jax.training.step import DATA, PADDING, P, Resident, placed

UPLOAD_ROWS = 1024
FACTS = ("drafter_len", "target_ids", "same_mask", "next_mask")
"""What is kept of answers beside their states."""


class Source(Protocol):
    """Answers to train or to validate on."""

    @property
    def index(self) -> Index | Pairs:
        """All about them but their states."""
        ...

    @property
    def resident(self) -> bool:
        """Whether the states lie on the devices."""
        ...

    def epoch(self, order: np.ndarray, *, cut: bool = True) -> Iterator[tuple[Any, Any]]:
        """What `Steps` and `Evaluation` take as `data` and `order`, piece by piece, for batches int32[steps, b].

        Numbers in `order` are places in `index`, or PADDING. Without `cut` every device gets whole batches.
        """
        ...

    def where(self, places: np.ndarray) -> str:
        """Which rows those are, in words."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ResidentSource:
    """A split in the memory of every device; an epoch is one piece."""

    index: Index | Pairs
    data: Resident
    mesh: Mesh
    store: Store | None = None
    resident: bool = True

    @classmethod
    def of_pairs(cls, pairs: Pairs, mesh: Mesh) -> "ResidentSource":
        """Put pairs from memory on the devices, in their own dtype."""
        return cls(index=pairs, data=placed(resident(pairs), mesh), mesh=mesh)

    @classmethod
    def of_store(cls, store: Store, index: Index, pairing: Pairing | None, mesh: Mesh) -> "ResidentSource":
        """Read a split onto the devices, a piece at a time: the host never holds it whole."""
        states = {name: _upload(store, field, index.row, mesh) for name, field in state_fields(pairing).items()}
        facts = placed({name: getattr(index, name) for name in FACTS}, mesh)
        data = Resident(drafter=states.get("drafter"), target=states["target"], **facts)
        return cls(index=index, data=data, mesh=mesh, store=store)

    def pairs(self) -> Pairs:
        """The same answers as pairs whose states stay on the device."""
        facts = {field.name: getattr(self.index, field.name) for field in fields(Index)}
        return Pairs(drafter=self.data.drafter, target=self.data.target, **facts)  # pyright: ignore[reportArgumentType]

    def epoch(self, order: np.ndarray, *, cut: bool = True) -> Iterator[tuple[Any, Any]]:
        """See `Source`."""
        yield self.data, placed(order, self.mesh, P(None, DATA) if cut else P())

    def where(self, places: np.ndarray) -> str:
        """See `Source`."""
        return _where(self.index, self.store, places)


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamSource:
    """A split that is read, copied and trained on at the same time; every piece holds `steps` batches."""

    index: Index
    store: Store
    pairing: Pairing | None
    mesh: Mesh
    steps: int
    resident: bool = False

    def epoch(self, order: np.ndarray, *, cut: bool = True) -> Iterator[tuple[Any, Any]]:
        """See `Source`. Each process reads its own part of every batch."""
        fields = state_fields(self.pairing)
        pieces = self._pieces(order, cut)
        rows = [np.where(p == PADDING, PADDING, self.index.row[p]).ravel() for p in pieces]
        before: list[Any] = []
        # The buffers of a piece are read into again when the second piece after it is asked for.
        for piece, states in zip(
            pieces, stream_rows(self.store, list(fields.values()), iter(rows), ahead=2, hold=2), strict=True
        ):
            batch = self._batch(piece, {name: states[field] for name, field in fields.items()}, cut)
            jax.block_until_ready(before)
            before = [x for x in (batch.drafter, batch.target) if x is not None]
            yield None, batch

    def where(self, places: np.ndarray) -> str:
        """See `Source`."""
        return _where(self.index, self.store, places)

    def _pieces(self, order: np.ndarray, cut: bool) -> list[np.ndarray]:
        """This process's part of the batches, in equal pieces; the last is filled up with batches of padding."""
        own = order.shape[1] // jax.process_count() if cut else order.shape[1]
        first = jax.process_index() * own if cut else 0
        order = order[:, first : first + own]
        size = min(self.steps, len(order))
        filled = np.full((-(-len(order) // size) * size, own), PADDING, np.int32)
        filled[: len(order)] = order
        return list(filled.reshape(-1, size, own))

    def _batch(self, piece: np.ndarray, states: dict[str, np.ndarray], cut: bool) -> Resident:
        real, places = piece != PADDING, np.maximum(piece, 0)
        facts = {name: getattr(self.index, name)[places] for name in FACTS}
        for name in ("same_mask", "next_mask"):
            facts[name] = facts[name] & real[..., None]
        shaped = {name: value.reshape(*piece.shape, *value.shape[1:]) for name, value in states.items()}
        content = {"drafter": None, **shaped, **facts}
        put = {name: None if value is None else self._put(value, cut) for name, value in content.items()}
        return Resident(**cast(dict[str, Any], put))

    def _put(self, value: np.ndarray, cut: bool) -> jax.Array:
        sharding = NamedSharding(self.mesh, P(None, DATA) if cut else P())
        if jax.default_backend() == "cpu":
            value = value.copy()  # the device's memory would be the buffer itself
        parts = jax.process_count() if cut else 1
        shape = (value.shape[0], value.shape[1] * parts, *value.shape[2:])
        return jax.make_array_from_process_local_data(sharding, value, shape)


def as_source(split: "Pairs | Source", mesh: Mesh) -> Source:
    """Pairs in memory as a source; a source as it is."""
    return ResidentSource.of_pairs(split, mesh) if isinstance(split, Pairs) else split


def store_source(store: Store, index: Index, pairing: Pairing | None, engine: Engine, mesh: Mesh) -> Source:
    """A split of a store, where the engine wants it."""
    if engine.is_resident(state_bytes(store, pairing, len(index))):
        return ResidentSource.of_store(store, index, pairing, mesh)
    return StreamSource(index=index, store=store, pairing=pairing, mesh=mesh, steps=engine.stream_steps)


def resident(pairs: Pairs) -> Resident:
    """The arrays of pairs that a step reads."""
    return Resident(**{name: getattr(pairs, name) for name in Resident._fields})


def _upload(store: Store, field: str, rows: np.ndarray, mesh: Mesh) -> jax.Array:
    starts = range(0, len(rows), UPLOAD_ROWS)
    pieces = stream_rows(store, [field], (rows[start : start + UPLOAD_ROWS] for start in starts), hold=2)
    put = jax.jit(
        lambda whole, part, start: jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0), donate_argnums=0
    )
    whole: Any = None
    for start, piece in zip(starts, pieces, strict=True):
        if whole is None:
            whole = _blank(len(rows), piece[field], mesh)
        whole = put(whole, placed(piece[field].copy(), mesh), placed(np.int32(start), mesh))
    return jax.block_until_ready(whole)


def _blank(rows: int, like: np.ndarray, mesh: Mesh) -> jax.Array:
    """Zeros [rows, ...] on every device, made there."""
    make = jax.jit(lambda: jnp.zeros((rows, *like.shape[1:]), like.dtype), out_shardings=NamedSharding(mesh, P()))
    return make()


def _where(index: Index | Pairs, store: Store | None, places: np.ndarray) -> str:
    rows = np.sort(index.row[places[places != PADDING]])
    told = ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
    if store is None:
        return f"rows {told}"
    shards = ", ".join(map(str, np.unique(rows // store.manifest.shard_rows)[:8]))
    return f"rows {told} of {store.path}, shards {shards}"
