"""Weight files: which ones count, what is refused about them, and that nothing in them is ever run."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from torch_bridge.folders import ModelFolderError
from torch_bridge.weights import Part, WeightFiles, fill, weight_files

ONE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


def shards(folder: Path, *parts: dict[str, torch.Tensor], suffix: str = "bin") -> Path:
    """Shards with an index; returns the index."""
    stem = "pytorch_model" if suffix == "bin" else "model"
    weight_map = {}
    for number, part in enumerate(parts, 1):
        name = f"{stem}-{number:05}-of-{len(parts):05}.{suffix}"
        torch.save(part, folder / name) if suffix == "bin" else save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def refusal(folder: Path) -> str:
    with pytest.raises(ModelFolderError) as caught:
        WeightFiles(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert len(message) < 600
    return message


def test_the_files_of_several_formats_are_taken_in_transformers_order(tmp_path):
    with pytest.raises(ModelFolderError, match=r"holds no weights \(model.safetensors or pytorch_model.bin"):
        weight_files(tmp_path)
    expected = []
    for suffix, single in (("bin", "pytorch_model.bin"), ("safetensors", "model.safetensors")):
        shards(tmp_path, {"weight": ONE["weight"]}, {"bias": ONE["bias"]}, suffix=suffix)
        expected.append([f"{single.split('.')[0]}-0000{n}-of-00002.{suffix}" for n in (1, 2)])
        assert [file.name for file in weight_files(tmp_path)] == expected[-1]
        (tmp_path / single).write_bytes(b"")
        assert [file.name for file in weight_files(tmp_path)] == [single]


def test_a_safetensors_file_of_any_name_will_do(tmp_path):
    save_file(ONE, tmp_path / "weights.safetensors")
    (tmp_path / "training_args.bin").write_bytes(b"never opened")
    assert [file.name for file in weight_files(tmp_path)] == ["weights.safetensors"]
    assert set(WeightFiles(tmp_path).stored) == set(ONE)


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_shards_that_are_not_there_are_named(tmp_path, suffix):
    shards(tmp_path, {"weight": ONE["weight"]}, {"bias": ONE["bias"]}, {"more": ONE["bias"]}, suffix=suffix)
    stem = "pytorch_model" if suffix == "bin" else "model"
    absent = [f"{stem}-0000{n}-of-00003.{suffix}" for n in (1, 3)]
    for name in absent:
        (tmp_path / name).unlink()
    message = refusal(tmp_path)
    assert f"names 2 files that are not there: {', '.join(absent)}" in message
    assert "index.json" in message


@pytest.mark.parametrize("weight_map", [None, {}, [], {"weight": 3}, {"weight": "../secret.bin"}])
def test_an_index_that_names_no_files_beside_it_is_refused(tmp_path, weight_map):
    shards(tmp_path, ONE).write_text(json.dumps({"weight_map": weight_map}))
    assert "weight_map" in refusal(tmp_path)


def test_a_name_in_two_files_is_refused(tmp_path):
    shards(tmp_path, ONE, {"weight": ONE["weight"]})
    assert "weight stands in another file" in refusal(tmp_path)


class Command:
    """Its pickle runs a command where it is loaded without care."""

    def __init__(self, line: str) -> None:
        self.line = line

    def __reduce__(self):
        return os.system, (self.line,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["single", "shard"])
def test_code_in_a_pickled_file_is_refused_and_not_run(tmp_path, zipped, place):
    loaded = ONE | {"hidden": Command(f"touch {tmp_path / 'was-run'}")}
    if place == "single":
        torch.save(loaded, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    else:
        shards(tmp_path, {"first": ONE["bias"]}, ONE)
        last = tmp_path / "pytorch_model-00002-of-00002.bin"
        torch.save(loaded, last, _use_new_zipfile_serialization=zipped)
    message = refusal(tmp_path)
    assert "holds more than tensors" in message
    assert "safetensors" in message
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("content", [{"state_dict": ONE}, [1, 2], {"weight": 3.0}], ids=["nested", "list", "number"])
def test_a_pickled_file_of_anything_but_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "pytorch_model.bin")
    assert "named tensors and nothing else" in refusal(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_pickled_file_is_refused(tmp_path, zipped):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"weight": torch.zeros(5000)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:9000])
    assert "download it again" in refusal(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bool])
@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_quantised_weights_are_not_cast_as_if_they_were_plain_ones(tmp_path, dtype, suffix):
    """Their scales stand elsewhere: a cast would load nonsense without a word."""
    shards(tmp_path, {"weight": torch.ones(2, 3).to(dtype), "bias": ONE["bias"]}, suffix=suffix)
    files = WeightFiles(tmp_path)
    with pytest.raises(ModelFolderError, match=r"wrong shape: weight is \S*\[2, 3\], needs \[2, 3\]"):
        fill(linear(), [Part(files=files, names={n: n for n in files.stored})], dtype=torch.float32, where=tmp_path)


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_weights_of_any_precision_are_cast_as_they_are_read(tmp_path, stored, suffix):
    shards(tmp_path, {"weight": ONE["weight"].to(stored)}, {"bias": ONE["bias"].to(stored)}, suffix=suffix)
    files, model = WeightFiles(tmp_path), linear()
    fill(model, [Part(files=files, names={n: n for n in files.stored})], dtype=torch.bfloat16, where=tmp_path)
    assert torch.equal(model.weight, ONE["weight"].bfloat16())
    assert torch.equal(model.bias, ONE["bias"].bfloat16())


def linear() -> torch.nn.Linear:
    return torch.nn.Linear(3, 2, device="meta")
