"""The real Llama vocabulary, from the npm package `llama-tokenizer-js`: it is fetched for the tests, not kept here."""

import base64
import json
import os
import re
import shutil
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers

PACKAGE = "llama-tokenizer-js@1.2.2"
SCRIPT = "llama-tokenizer.js"
BLANK = "\u2581"
# Text tokens of the prompts of questions 1..10, BOS included, as the study counted them.
STUDY_LENGTHS = [59, 61, 56, 61, 66, 61, 58, 59, 56, 66]


class NotFetchedError(Exception):
    """No npm, or it could not fetch the package; the text says why."""


def fetched(cache: Path) -> Path:
    """The package's folder in a cache, by the ordinary npm client where it is not there yet."""
    folder = cache / PACKAGE
    if (folder / SCRIPT).is_file():
        return folder
    if shutil.which("npm") is None:
        raise NotFetchedError("npm is not installed")
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        options = ["--pack-destination", scratch, "--fetch-retries=0", "--fetch-timeout=20000", "--loglevel=error"]
        try:
            subprocess.run(["npm", "pack", PACKAGE, *options], cwd=scratch, check=True, capture_output=True, timeout=60)
        except (subprocess.SubprocessError, OSError) as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace")
            raise NotFetchedError(" ".join(f"{error} {said}".split())[:300]) from error
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            for name in (SCRIPT, "package.json"):
                member = archive.extractfile(f"package/{name}")
                assert member is not None
                (Path(scratch) / name).write_bytes(member.read())
        folder.mkdir(exist_ok=True)
        for name in ("package.json", SCRIPT):  # the script last: it says that the folder is whole
            os.replace(Path(scratch) / name, folder / name)
    return folder


@dataclass(frozen=True)
class Vocabulary:
    """Pieces by id, merges by rank, and the package's own encoder."""

    folder: Path
    pieces: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, folder: Path) -> "Vocabulary":
        """Decode the two base64 texts inside the package's script."""
        script = (folder / SCRIPT).read_text(encoding="utf-8")
        pieces, merges = (_decoded(script, name) for name in ("llama_vocab_base64", "llama_merges_binary"))
        vocabulary = tuple(pieces.decode("utf-8").split("\n"))
        ids = struct.iter_unpack("<HH", merges)
        return cls(folder, vocabulary, tuple((vocabulary[left], vocabulary[right]) for left, right in ids))

    def tokenizer(self) -> Tokenizer:
        """The fast tokenizer that a `tokenizer.json` of Llama holds: BPE, bytes as a fallback, blanks as a mark."""
        ids = {piece: number for number, piece in enumerate(self.pieces)}
        model = models.BPE(ids, list(self.merges), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
        tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
        return tokenizer

    def encoded_by_the_package(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids without BOS, by the package itself, in node."""
        told = "import {readFileSync} from 'fs'; const texts = JSON.parse(readFileSync(0, 'utf8'));"
        code = (
            f"import tokenizer from {json.dumps((self.folder / SCRIPT).as_uri())}; {told}"
            "console.log(JSON.stringify(texts.map(t => Array.from(tokenizer.encode(t, false, true)))))"
        )
        command = ["node", "--input-type=module", "-e", code]
        done = subprocess.run(command, input=json.dumps(list(texts)), capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])


def _decoded(script: str, name: str) -> bytes:
    found = re.search(rf'{name}\s*=\s*"([^"]+)"', script)
    assert found is not None, f"the package {PACKAGE} has no {name}"
    return base64.b64decode(found[1])
