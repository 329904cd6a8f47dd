"""An exported adapter comes back as it was, or is refused with a line that says why."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tests.adapters.small import WIDTH, every, lively, streams
from xmsd_jax.adapters import files
from xmsd_jax.adapters.files import AdapterError, Passport, SavedAdapter, check_fits, load_adapter, named_parameters
from xmsd_jax.adapters.kinds import KINDS, make

REVISIONS = {"target": "t1", "drafter": "d1"}


def passport(kind: str = "L1", **more) -> Passport:
    given = {
        "kind": kind, "width": WIDTH, "blocks": None, "pairing": "index", "vocabulary": 40, "head_fingerprint": "h1",
        "revisions": REVISIONS, "store": "s1", "training": {"epoch": 3, "metric": "free", "value": 4.5},
    }  # fmt: skip
    return Passport(**{**given, **more})


@pytest.fixture
def folder(tmp_path):
    return files.save_adapter(tmp_path / "made" / "L1", lively("L1"), passport())


def assert_refused(folder, told: str) -> None:
    with pytest.raises(AdapterError) as caught:
        load_adapter(folder)
    message = str(caught.value)
    assert re.search(told, message), message
    assert "\n" not in message
    assert str(folder) in message
    assert files.AGAIN in message


@pytest.mark.parametrize("kind", KINDS)
def test_the_round_trip_is_exact(kind, tmp_path):
    adapter = lively(kind)
    saved = load_adapter(files.save_adapter(tmp_path, adapter, passport(kind)))
    assert saved.passport == passport(kind)
    assert saved.folder == tmp_path
    assert nnx.split(saved.adapter)[0] == nnx.split(adapter)[0]
    for name, value in named_parameters(adapter).items():
        np.testing.assert_array_equal(named_parameters(saved.adapter)[name], value, strict=True)
    np.testing.assert_array_equal(saved.adapter(streams(), every()), adapter(streams(), every()))


def test_a_number_of_blocks_comes_back(tmp_path):
    files.save_adapter(tmp_path, make("L3", WIDTH, blocks=3), passport("L3", blocks=3))
    assert len(load_adapter(tmp_path).adapter.blocks) == 3


def test_a_loaded_adapter_runs_in_the_program_of_a_fresh_one(folder):
    traces = []
    graph, fresh = nnx.split(make("L1", WIDTH))

    @jax.jit
    def call(params):
        traces.append(1)
        return nnx.merge(graph, params)(streams(), every())

    call(fresh)
    call(nnx.split(load_adapter(folder).adapter)[1])
    assert len(traces) == 1


def test_saving_again_replaces_and_leaves_no_other_files(folder):
    files.save_adapter(folder, lively("L1", seed=1), passport(store="s2"))
    assert sorted(path.name for path in folder.iterdir()) == [files.PASSPORT, files.WEIGHTS]
    assert load_adapter(folder).passport.store == "s2"


def test_a_save_that_fails_leaves_no_passport(folder, monkeypatch):
    def fails(*_):
        raise OSError("disk is full")

    monkeypatch.setattr(files, "save_file", fails)
    with pytest.raises(OSError, match="disk is full"):
        files.save_adapter(folder, lively("L1"), passport())
    assert_refused(folder, "adapter.json: cannot be read")


def test_an_empty_folder_is_refused(tmp_path):
    assert_refused(tmp_path, "adapter.json: cannot be read")


def test_missing_weights_are_refused(folder):
    (folder / files.WEIGHTS).unlink()
    assert_refused(folder, "adapter.safetensors: cannot be read")


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_weights_that_are_cut_off_are_refused(folder, kept):
    content = (folder / files.WEIGHTS).read_bytes()
    (folder / files.WEIGHTS).write_bytes(content[:kept])
    assert_refused(folder, "adapter.safetensors: cannot be read")


def edited(folder, **tensors) -> None:
    """Write the weights again with some tensors replaced; None takes one out."""
    found = {**load_file(folder / files.WEIGHTS), **tensors}
    save_file({name: value for name, value in found.items() if value is not None}, folder / files.WEIGHTS)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_parameter_that_is_not_finite_is_refused(folder, value):
    edited(folder, **{"final_norm.scale": np.full(WIDTH, value, np.float32)})
    assert_refused(folder, r"final_norm\.scale is not finite")


def test_every_parameter_that_does_not_fit_is_named(folder):
    wrong = {"blocks.0.up.kernel": np.zeros((3, WIDTH), np.float32), "blocks.0.alpha": None}
    edited(folder, **wrong, more=np.zeros(2, np.float32))
    assert_refused(
        folder, rf"missing blocks\.0\.alpha; unknown more; blocks\.0\.up\.kernel is \[3, {WIDTH}\], needed is \[2, "
    )


def test_an_adapter_that_cannot_take_all_parameters_takes_none():
    adapter = make("L1", WIDTH)
    given = {name: np.asarray(value) for name, value in named_parameters(lively("L1")).items()}
    del given["blocks.0.alpha"]
    with pytest.raises(AdapterError, match="missing"):
        files.assign(adapter, given, "test")
    np.testing.assert_array_equal(adapter.final_norm.bias[...], np.zeros(WIDTH))


def rewritten(folder, **fields) -> None:
    """Write the passport again with some fields replaced; None takes one out."""
    content = {**json.loads((folder / files.PASSPORT).read_text()), **fields}
    kept = {name: value for name, value in content.items() if value != "gone"}
    (folder / files.PASSPORT).write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"format": "other"}, "is not an xmsd-adapter file of version 1"),
        ({"version": 2}, "is not an xmsd-adapter file of version 1"),
        ({"store": "gone"}, "store: missing"),
        ({"colour": "red"}, "colour: unknown key"),
        ({"width": "32"}, "width: expected a whole number"),
        ({"width": 24}, "width: must be a positive multiple of 16"),
        ({"kind": "L9"}, "'L9': no such kind; known: L1, "),
        ({"blocks": 0}, "blocks: L1 takes at least 1, got 0"),
        ({"pairing": "random"}, "pairing: expected"),
        ({"revisions": ["t1"]}, "revisions: expected"),
        ({"kind": "L4"}, "parameters do not fit: missing layer"),
        ({"width": 64}, r"final_norm\.bias is \[32\], needed is \[64\]"),
    ],
)
def test_a_passport_that_is_not_right_is_refused(folder, fields, told):
    rewritten(folder, **fields)
    assert_refused(folder, told)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"adapter"'])
def test_a_passport_that_is_no_mapping_is_refused(folder, text):
    (folder / files.PASSPORT).write_text(text)
    assert_refused(folder, "adapter.json: (cannot be read|is not)")


def saved(tmp_path, **more) -> SavedAdapter:
    return SavedAdapter(adapter=lively("L1"), passport=passport(**more), folder=tmp_path)


def test_an_adapter_that_fits_passes(tmp_path):
    check_fits(saved(tmp_path), dataclasses.asdict(passport()), where="the store")
    check_fits(saved(tmp_path), {"width": WIDTH, "revisions": {"target": "t1"}}, where="the pair")
    check_fits(saved(tmp_path), {"revisions": {}}, where="a pair without revisions")


def test_every_field_that_differs_is_named_with_both_values(tmp_path):
    expected = {
        "width": 64, "vocabulary": 41, "head_fingerprint": "h2", "pairing": "synced", "store": "s1",
        "revisions": {"target": "t2", "drafter": "d1", "vision": "v1"},
    }  # fmt: skip
    with pytest.raises(AdapterError) as caught:
        check_fits(saved(tmp_path), expected, where="store runs/x")
    told = str(caught.value)
    assert "does not fit store runs/x" in told
    wanted = [
        "width is 32, needed is 64", "vocabulary is 40, needed is 41", "head_fingerprint is 'h1', needed is 'h2'",
        "pairing is 'index', needed is 'synced'", "revisions.target is 't1', needed is 't2'",
        "revisions.vision is None, needed is 'v1'",
    ]  # fmt: skip
    assert [part for part in wanted if part not in told] == []
    assert not {"store is", "revisions.drafter"} & set(re.findall(r"store is|revisions\.drafter", told))
