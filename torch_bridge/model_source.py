"""Where a model's files lie: in a folder, or in the cache that the hub's client keeps for a hub id. Loads no torch."""

import json
import re
from pathlib import Path

from xmsd_jax.config import UserError

_FETCHED = ("*.json", "*.safetensors", "tokenizer.model")
_PICKLED = "pytorch_model*.bin"

_HUB_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")


class ModelFolderError(UserError):
    """A model folder that cannot be used or found; the message names the file and the remedy."""


def model_source(named: str | Path) -> Path:
    """The folder of a model: `named` itself, or the cached files of a hub id, `owner/name` or `owner/name@revision`.

    Only configurations, tokenizers and weights are fetched, pickled weights only where there are no safetensors; with
    HF_HUB_OFFLINE=1 the cache alone is asked.

    Raises:
        ModelFolderError: neither a folder, nor in the cache, nor to be had from the hub.
    """
    folder = Path(named)
    if folder.is_dir():
        return folder
    found = _HUB_ID.fullmatch(str(named))
    if found is None:
        raise ModelFolderError(f"{folder}: no such folder; give a model's folder, or a hub id such as owner/name")
    return _fetched(found["name"], found["revision"])


def _fetched(name: str, revision: str | None) -> Path:
    try:
        folder = _snapshot(name, revision, list(_FETCHED))
        if not any(folder.rglob("*.safetensors")):
            folder = _snapshot(name, revision, [*_FETCHED, _PICKLED])
    except Exception as error:  # the client's own errors, those of its HTTP library and the system's have no one class
        reason = " ".join(str(error).split())[:200]
        raise ModelFolderError(
            f"{name}{'@' + revision if revision else ''}: neither a folder, nor in the hub's cache, nor to be had from "
            f"the hub ({type(error).__name__}: {reason}); give the folder of a downloaded model, or a right id"
        ) from error
    return folder


def _snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download  # half a second, and folders do not need it

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except ConnectionError:  # versions before 2 ask the hub about a commit that they hold, even offline
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))


def model_name(folder: Path) -> str:
    """What tables call a model: its folder's name, or the hub id and revision of a folder in the hub's cache."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return f"{repository.removeprefix('models--').replace('--', '/')}@{folder.name[:12]}"
    return folder.name


def vision_tower_folder(drafter: Path, written: object, named: str | Path | None) -> Path:
    """The CLIP folder of an EventGPT: the user's (`named`), else what config.json writes as `mm_visual_tower`.

    A relative path is taken from the drafter's folder. Public checkpoints write a hub id or a path of the machine that
    they were trained on: then the user names the folder.

    Raises:
        ModelFolderError: no such folder, or none is named.
    """
    if named is not None:
        return model_source(named)
    if not isinstance(written, str):
        raise ModelFolderError(
            f"{drafter}/config.json: mm_visual_tower names the folder of the vision tower's config.json, got "
            f"{written!r}; write that folder's path, or name a CLIP folder as vision_tower"
        )
    folder = drafter / written
    if not folder.is_dir():
        raise ModelFolderError(
            f"{drafter}/config.json: mm_visual_tower is {written!r}, and there is no folder {folder}; name the folder "
            "or hub id of that CLIP model as vision_tower"
        )
    return folder


def written_tower(drafter: Path) -> object:
    """`mm_visual_tower` of a drafter's config.json; None where there is none, or no readable one (loading says why)."""
    try:
        return json.loads((drafter / "config.json").read_text(encoding="utf-8")).get("mm_visual_tower")
    except (OSError, ValueError, AttributeError):
        return None
