"""A Llama `tokenizer.model` (sentencepiece, BPE) as a fast tokenizer, without sentencepiece.

Checkpoints saved with the slow tokenizer hold this file and no tokenizer.json. Its protobuf has pieces with scores; BPE
merges the pair whose piece has the best score first, which a list of merges says by its order.
"""

import json
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers

_BLANK = "\u2581"
# Numbers of fields and values of sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _KIND = 1, 2, 3
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_MODEL_TYPE, _BPE = 3, 2
_CHARACTER_MAP, _PREFIX, _SINGLE_BLANKS, _BLANK_MARKS = 2, 3, 4, 5


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its id is its place."""

    text: str
    score: float
    kind: int


def llama_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.model`, with the tokens that an `added_tokens.json` beside it adds.

    Raises:
        ValueError: the file is no sentencepiece model, or not one of Llama's kind (BPE, blanks kept, a blank before
            the text, bytes for unknown characters).
    """
    model = _fields(path.read_bytes())
    _require_llamas_kind(model)
    pieces = [_piece(message) for message in model[_PIECES]]
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    if len(ids) < len(pieces):
        raise ValueError("a piece stands in it twice")
    unknown = [piece.text for piece in pieces if piece.kind == _UNKNOWN]
    if len(unknown) != 1 or sum(piece.kind == _BYTE for piece in pieces) != 256:
        raise ValueError("it needs one unknown piece and the 256 bytes, as Llama's vocabulary has them")
    bpe = models.BPE(ids, merges(pieces), unk_token=unknown[0], fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_BLANK), normalizers.Replace(" ", _BLANK)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([piece.text for piece in pieces if piece.kind in (_UNKNOWN, _CONTROL)])
    _add(tokenizer, path.with_name("added_tokens.json"))
    return tokenizer


def merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece: the best score first, then by the ids of left and right."""
    ids = {piece.text: number for number, piece in enumerate(pieces) if piece.kind in (_NORMAL, _USER_DEFINED)}
    found = [
        (-pieces[number].score, ids[text[:cut]], ids[text[cut:]])
        for text, number in ids.items()
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    return [(pieces[left].text, pieces[right].text) for _, left, right in sorted(found)]


def _add(tokenizer: Tokenizer, path: Path) -> None:
    if not path.is_file():
        return
    added = json.loads(path.read_text(encoding="utf-8"))
    for text, number in sorted(added.items(), key=lambda entry: entry[1]):
        tokenizer.add_special_tokens([text])
        if tokenizer.token_to_id(text) != number:
            raise ValueError(
                f"{path.name} gives {text!r} the id {number}, which would be {tokenizer.token_to_id(text)}"
            )


def _require_llamas_kind(model: dict[int, list]) -> None:
    trainer, normalizer = (_fields((model[number] or [b""])[0]) for number in (_TRAINER, _NORMALIZER))
    single, marks, prefix = (normalizer[name][-1:] != [0] for name in (_SINGLE_BLANKS, _BLANK_MARKS, _PREFIX))
    mapped = any(normalizer[_CHARACTER_MAP])
    if trainer[_MODEL_TYPE][-1:] != [_BPE] or mapped or single or not marks or not prefix:
        raise ValueError("it is no BPE model that keeps text as it is but for a mark before it and at blanks")


def _piece(message: bytes) -> Piece:
    fields = _fields(message)
    score = struct.unpack("<f", fields[_SCORE][-1])[0] if fields[_SCORE] else 0.0
    return Piece(fields[_TEXT][-1].decode("utf-8"), score, (fields[_KIND] or [_NORMAL])[-1])


def _fields(message: bytes) -> dict[int, list]:
    """The fields of a protobuf message by number, repeated ones in order: whole numbers, or bytes."""
    fields: dict[int, list] = defaultdict(list)
    for number, value in _entries(message):
        fields[number].append(value)
    return fields


def _entries(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError("it is no protobuf message")
        if at + size > len(message):
            raise ValueError("it is cut off")
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(message):
            raise ValueError("it is cut off")
        value |= (message[at] & 0x7F) << shift
        at += 1
        if message[at - 1] < 0x80:
            return value, at
    raise ValueError("it is no protobuf message")
