"""The same store with its states stored otherwise: native or float8."""

from dataclasses import replace
from pathlib import Path

from xmsd_jax.data import store_layout as layout
from xmsd_jax.data.manifest import States
from xmsd_jax.data.store import Store, StoreWriter


def recode(source: Path, into: Path, states: States) -> Path:
    """Write the finished store `source` anew at `into`, shard by shard; killed, it goes on. Returns `into`.

    From float8 to native the rounding stays: states are what the store of 8 bits reads. The target's head, which lies
    beside the stores, is copied as well.

    Raises:
        StoreError: a source that is not whole, another store at `into`, a full disk.
    """
    store = Store.open(source)
    writer = StoreWriter.create_or_resume(into, replace(store.manifest, states=states), store.names)
    if (source.parent / layout.HEAD).exists():
        layout.keep_head(into.parent, store.head())
    notes = store.notes()
    for rows in writer.pending():
        block = slice(rows.start, rows.stop)
        fields = {name: store.read(name, block) for name in layout.fields_of(store.manifest) if name != layout.DONE}
        texts = {which: one[block] for which, one in store.texts.items()}
        writer.write(rows.start, fields, texts=texts, note=notes.get(rows))
    writer.finish()
    return into
