"""Weight files of a model folder: one or shards, safetensors or `.bin`, read tensor by tensor. Nothing in them is run.

A 7B model in bfloat16 is 14 GB, so its tensors never stand in memory twice: files are mapped, names and shapes are
compared before any tensor is read, and each is cast and copied on its own into a model that was built on the meta
device.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from torch_bridge.folders import ModelFolderError, misfit, read_json

SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
_ZIP = b"PK\x03\x04"
# By torch's name and by safetensors': whole numbers and 8-bit floats need scales that a plain cast would drop.
_CAST = (torch.float64, torch.float32, torch.float16, torch.bfloat16, "F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Stored:
    """What a file says about a tensor before it is read: its shape, and its dtype unless that may be cast."""

    shape: tuple[int, ...]
    odd_dtype: str | None = None

    def __str__(self) -> str:
        return f"{self.odd_dtype or ''}{list(self.shape)}"


class WeightFiles:
    """The weight files of a folder, opened one after the other.

    Raises:
        ModelFolderError: no weights, a shard that is not there, a damaged file, one name in two files, or a `.bin` with
            anything but tensors in it.
    """

    def __init__(self, folder: Path) -> None:
        """Read the names and shapes of all files."""
        self.folder = folder
        self.files = weight_files(folder)
        self.stored: dict[str, Stored] = {}
        for file in self.files:
            stored = _bin_header(file) if file.suffix == ".bin" else _safetensors_header(file)
            if twice := sorted(self.stored.keys() & stored.keys()):
                raise ModelFolderError(
                    f"{file}: {twice[0]} stands in another file of {folder} too; keep one set of weights there"
                )
            self.stored |= stored

    def tensors(self, wanted: Mapping[str, str], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """The wanted tensors under their new names, cast; each is a copy, so the files may go away afterwards."""
        for file in self.files:
            if file.suffix == ".bin":
                found = _read_bin(file)
                for name in [name for name in found if name in wanted]:
                    yield wanted[name], found.pop(name).to(dtype, copy=True)
            else:
                with safe_open(file, framework="pt") as opened:
                    for name in [name for name in opened.keys() if name in wanted]:  # noqa: SIM118
                        yield wanted[name], opened.get_tensor(name).to(dtype, copy=True)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, sorted.

    One safetensors file goes before shards of that format, these before `.bin`: transformers' own order.

    Raises:
        ModelFolderError: there are none, or an index names some that are not there.
    """
    for single in SINGLE:
        if (folder / single).is_file():
            return [folder / single]
        if (folder / (single + _INDEX)).is_file():
            return _shards(folder, single + _INDEX)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelFolderError(
            f"{folder}: holds no weights ({' or '.join(SINGLE)}, or shards and an index.json); download the model again"
        )
    return files


def _shards(folder: Path, index: str) -> list[Path]:
    names = read_json(folder, index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(_is_name(name) for name in names.values()):
        raise ModelFolderError(
            f"{folder / index}: weight_map must give the file name of every weight; download the model again"
        )
    files = [folder / name for name in sorted(set(names.values()))]
    if absent := [file.name for file in files if not file.is_file()]:
        raise ModelFolderError(
            f"{folder / index}: names {len(absent)} files that are not there: {', '.join(absent[:4])}; "
            "finish the download of the model"
        )
    return files


def _is_name(name: object) -> bool:
    """Whether it is a file beside the index: an index from elsewhere must not lead out of its folder."""
    return isinstance(name, str) and Path(name).name == name


def _safetensors_header(file: Path) -> dict[str, Stored]:
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
            return {name: _stored(part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(f"{file}: cannot be read ({error}); download it again") from None


def _stored(shape: Sequence[int], dtype: object) -> Stored:
    return Stored(tuple(shape), None if dtype in _CAST else str(dtype))


def _read_bin(file: Path) -> dict[str, Tensor]:
    """The tensors of a pickled file, mapped where its format allows (all but torch's oldest)."""
    try:
        with file.open("rb") as stream:
            mapped = stream.read(len(_ZIP)) == _ZIP
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFolderError(f"{file}: cannot be read ({reason}); download it again") from None
    except Exception as error:  # pickle's own error, whose module is imported nowhere here
        raise ModelFolderError(
            f"{file}: holds more than tensors, or is damaged ({type(error).__name__}); code from a file is never run: "
            "download it again, or give weights as safetensors"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise ModelFolderError(f"{file}: must hold named tensors and nothing else; give weights as safetensors")
    return found


def _bin_header(file: Path) -> dict[str, Stored]:
    return {name: _stored(tensor.shape, tensor.dtype) for name, tensor in _read_bin(file).items()}


@dataclass(frozen=True, kw_only=True)
class Part:
    """Weight files and how their names are called in the model; names that are left out are passed over."""

    files: WeightFiles
    names: Mapping[str, str]


def fill(model: nn.Module, parts: Sequence[Part], *, dtype: torch.dtype, where: Path) -> None:
    """Give a model that was built on the meta device its weights, cast to `dtype`; buffers that no file holds stay.

    Raises:
        ModelFolderError: weights are missing, unexpected, misshapen or of an odd dtype, in any file: all in one error.
    """
    _check(model.state_dict(), parts, where)
    state = {name: tensor for part in parts for name, tensor in part.files.tensors(part.names, dtype)}
    model.load_state_dict(state, assign=True)


def _check(own: Mapping[str, Tensor], parts: Sequence[Part], where: Path) -> None:
    given: dict[str, Stored] = {}
    unexpected: list[str] = []
    shapes: list[str] = []
    for part in parts:
        for name, new in part.names.items():
            stored = part.files.stored[name]
            if new not in own or new in given:
                unexpected.append(name)
                continue
            given[new] = stored
            if stored.odd_dtype or stored.shape != tuple(own[new].shape):
                shapes.append(f"{name} is {stored}, needs {list(own[new].shape)}")
    missing = sorted(own.keys() - given.keys())
    if missing or unexpected or shapes:
        raise misfit(where, missing=missing, unexpected=sorted(unexpected), shapes=sorted(shapes))
