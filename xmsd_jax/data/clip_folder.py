"""A folder of clips: one npz each under its split, and `clips.json`, written last, that lists them; or a tree.

clips.json            {"format", "about", "clips": [{"name", "sequence", "split", "file", "fingerprint"}]}
about.json            what an unfinished folder is being made of, so that only the same work goes on in it
<split>/<name>.npz    see `clips.py`

A tree of files, as the study made them and as `xmsd clips` makes them of DSEC, opens the same way: see `clip_tree.py`.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xmsd_jax.config import ConfigError
from xmsd_jax.data import clip_tree
from xmsd_jax.data.clips import Clip, ClipError, load_clip, save_clip
from xmsd_jax.data.events import EventFrames, serves
from xmsd_jax.runs import write_text

FORMAT = "xmsd-clips-1"
# What a run's stage (runs.py) puts into its folder before the work starts.
_MARKER = "stage.json"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class ClipEntry:
    """A clip in a folder: `file` is relative to it (in a tree its video), `fingerprint` is `Clip.fingerprint()`.

    In a tree the fingerprint is that of the clip's files (`clip_tree.py`).
    """

    name: str
    sequence: str
    split: str
    file: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class ClipFolder:
    """A finished folder of clips; `open` reads the list, `load` a clip. `tree`: where its files are, by clip's name."""

    path: Path
    about: Mapping[str, Any]
    clips: tuple[ClipEntry, ...]
    tree: Mapping[str, clip_tree.TreeClip] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "ClipFolder":
        """Read the list of a folder or tree; ClipError if it is missing, unfinished, damaged or of another kind."""
        path = Path(path)
        if (path / clip_tree.INDEX).is_file() and not ((path / "clips.json").exists() or (path / _MARKER).exists()):
            return cls._of_tree(path, {"made by": "the study"}, clip_tree.study_clips(path))
        try:
            listed = json.loads((path / "clips.json").read_bytes())
            if listed["format"] == clip_tree.FORMAT:
                return cls._of_tree(path, dict(listed["about"]), clip_tree.own_clips(listed))
            if listed["format"] != FORMAT:
                raise ClipError(f"{path}: clips.json has format {listed['format']!r}, this is {FORMAT}; make it again")
            clips = tuple(ClipEntry(**entry) for entry in listed["clips"])
            about = dict(listed["about"])
        except FileNotFoundError as error:
            raise ClipError(f"{path}: no finished clip folder (no clips.json); run `xmsd clips` to the end") from error
        except (OSError, TypeError, KeyError, ConfigError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ClipError(f"{path / 'clips.json'}: damaged or foreign ({error!r}); run `xmsd clips` again") from error
        for clip in clips:
            _check_name(clip.split, clip.name)
            if clip.file != f"{clip.split}/{clip.name}.npz":
                raise ClipError(f"{path / 'clips.json'}: {clip.name} points at {clip.file!r}, outside its split")
        return cls(path=path, about=about, clips=clips)

    @classmethod
    def _of_tree(cls, path: Path, about: Mapping[str, Any], found: list[clip_tree.TreeClip]) -> "ClipFolder":
        clips = tuple(
            ClipEntry(name=c.name, sequence=c.sequence, split=c.split, file=c.video, fingerprint=c.fingerprint)
            for c in found
        )
        for clip in clips:
            _check_name(clip.split, clip.name)
        tree = {clip.name: clip for clip in found}
        if len(tree) < len(clips):
            raise ClipError(f"{path}: two clips have one name; a sequence and number are given once in a tree's index")
        return cls(path=path, about=about, clips=clips, tree=tree)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits' names, in the order in which they were written."""
        return tuple(dict.fromkeys(entry.split for entry in self.clips))

    @property
    def fingerprint(self) -> str:
        """sha256 over all clips' names, splits, sequences and contents, in order."""
        return hashlib.sha256(json.dumps([asdict(entry) for entry in self.clips]).encode()).hexdigest()

    def entries(self, split: str) -> tuple[ClipEntry, ...]:
        """Return the clips of a split, in order; ClipError if there is no such split."""
        if split not in self.splits:
            raise ClipError(f"{self.path}: no split {split!r}, it has {', '.join(self.splits) or 'none'}")
        return tuple(entry for entry in self.clips if entry.split == split)

    def require_frames(self, split: str, how: EventFrames) -> None:
        """Raise ClipError where a clip of the split keeps neither events nor the event frames that `how` asks for."""
        for entry in self.entries(split):
            clip = self.tree.get(entry.name)
            if clip is not None and clip.events is None and not serves(clip.how, how):
                raise ClipError(
                    f"{self.path}: {entry.name} keeps event frames made with {clip.how} and no events, asked for {how};"
                    " set pair.event_frames to what it keeps, or make the clips again with their events"
                )

    def load(self, entry: ClipEntry) -> Clip:
        """Read a clip; ClipError if its file is missing, damaged, or not the clip that is listed."""
        if entry.name in self.tree:
            return clip_tree.load_tree_clip(self.path, self.tree[entry.name])
        clip = load_clip(self.path / entry.file)
        if clip.fingerprint() != entry.fingerprint:
            raise ClipError(f"{self.path / entry.file}: is not the clip that clips.json lists; run `xmsd clips` again")
        return clip


class ClipFolderWriter:
    """Writes a folder clip by clip; a killed writer goes on where `about` is the same, and keeps what it has.

    `about` (JSON) says what the clips are made of. Clips of a folder with another `about` are removed first;
    a folder that holds other things than ours is refused.
    """

    def __init__(self, path: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
        """Start or go on; ClipError when the folder holds something that is not ours."""
        self.path = Path(path)
        # Through JSON, so that what is compared is what a reader would get (tuples become lists).
        self.about = json.loads(json.dumps(about))
        self.kept = 0
        self._entries: list[ClipEntry] = []
        self._names: set[str] = set()
        self._prepare()

    def add(self, split: str, clip: Clip) -> ClipEntry:
        """Write a clip unless its file holds just it; ClipError for a name that is taken or no file name."""
        _check_name(split, clip.name)
        if clip.name in self._names:
            raise ClipError(f"{self.path}: two clips are named {clip.name!r}; a name is given once, over all splits")
        entry = ClipEntry(
            name=clip.name, sequence=clip.sequence, split=split,
            file=f"{split}/{clip.name}.npz", fingerprint=clip.fingerprint(),
        )  # fmt: skip
        if self._holds(entry):
            self.kept += 1
        else:
            save_clip(self.path / entry.file, clip)
        self._names.add(clip.name)
        self._entries.append(entry)
        return entry

    def close(self) -> ClipFolder:
        """Write `clips.json`, which makes the folder a finished one, and open it."""
        listed = {"format": FORMAT, "about": self.about, "clips": [asdict(entry) for entry in self._entries]}
        write_text(self.path / "clips.json", json.dumps(listed, indent=1))
        (self.path / "about.json").unlink(missing_ok=True)
        return ClipFolder.open(self.path)

    def _holds(self, entry: ClipEntry) -> bool:
        file = self.path / entry.file
        if not file.exists():
            return False
        try:
            return load_clip(file).fingerprint() == entry.fingerprint
        except ValueError:  # ClipError or EventError: damaged, so written anew
            return False

    def _prepare(self) -> None:
        found = _about(self.path)
        if found is None and self.path.exists() and any(file.name != _MARKER for file in self.path.iterdir()):
            raise ClipError(f"{self.path}: is not empty and no clip folder; give another folder, or empty it yourself")
        other = found not in (None, self.about)
        # In this order a kill at any point leaves a folder that is known as unfinished, and by the right `about`.
        write_text(self.path / "about.json", json.dumps(found if other else self.about))
        (self.path / "clips.json").unlink(missing_ok=True)
        if other:
            for file in self.path.glob("*/*.npz"):
                file.unlink()
            write_text(self.path / "about.json", json.dumps(self.about))


def _about(path: Path) -> dict[str, Any] | None:
    for name, key in (("about.json", None), ("clips.json", "about")):
        try:
            found = json.loads((path / name).read_bytes())
            return found if key is None else found[key]
        except FileNotFoundError:
            continue
        except (TypeError, KeyError, ValueError) as error:
            raise ClipError(f"{path / name}: damaged or foreign ({error!r}); remove the folder") from error
    return None


def _check_name(split: str, name: str) -> None:
    for word in (split, name):
        if not isinstance(word, str) or not _NAME.fullmatch(word):
            raise ClipError(f"clip {name!r} of split {split!r}: a name is letters, digits and _ . - (no dot first)")
