"""A process that trains on the devices it is given: `python -m tests.training.on_devices FOLDER ENGINES`.

FOLDER holds the stores `train` and `validation`; ENGINES is a JSON list of fields of `Engine`. Prints one JSON list per
engine: losses and accepted tokens of every epoch.
"""

import json
import sys
from pathlib import Path

import jax

from tests.training import made_up
from xmsd_jax.adapters.kinds import KINDS, make
from xmsd_jax.data.batches import read_index
from xmsd_jax.data.store import Store
from xmsd_jax.training.engine import Engine
from xmsd_jax.training.loop import train
from xmsd_jax.training.sources import store_source

KIND, PAIRING, WIDTH = "L4", "index", 64


def curve(folder: Path, engine: Engine) -> list[tuple[float, float, float]]:
    """Of a run with dropout, the last batch of which is partly padding."""
    mesh, inputs = engine.mesh(), KINDS[KIND].facts.inputs
    stores = (Store.open(folder / name) for name in ("train", "validation"))
    training, validation = (
        store_source(store, read_index(store, inputs=inputs, pairing=PAIRING), PAIRING, engine, mesh)
        for store in stores
    )
    done = train(
        make(KIND, WIDTH),
        training=training,
        validation=validation,
        head=made_up.head(),
        mode="own",
        recipe=made_up.recipe(batch=12, epochs=3, dropout=0.3, learning_rate=1e-2),
        engine=engine,
    )
    return [(e.training_loss, e.validation_loss, e.accepted) for e in done.epochs]


def main(folder: str, engines: str) -> None:
    jax.config.update("jax_disable_most_optimizations", True)
    for fields in json.loads(engines):
        engine = Engine(**fields)
        engine.join()
        print(json.dumps(curve(Path(folder), engine)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
