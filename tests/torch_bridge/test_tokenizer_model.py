"""A `tokenizer.model` alone tokenises as Llama's does; another kind of file is one clear error."""

import json
import struct
from pathlib import Path

import pytest

from tests.llama_vocabulary import STUDY_LENGTHS
from torch_bridge.eventgpt import PROMPT, SYSTEM
from torch_bridge.folders import ModelFolderError, read_tokenizer, text_ids, with_bos
from xmsd_jax.data.questions import QUESTIONS

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
HEAD = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
BYTES = [(f"<0x{number:02X}>", 0.0, BYTE) for number in range(256)]
# By hand: "▁ab" is made of "▁a" + "b" (best score first), not of "▁" + "ab".
TEXT = [("▁a", 0.0, NORMAL), ("ab", -1.0, NORMAL), ("▁ab", -2.0, NORMAL)]
TEXT += [(letter, -3.0 - place, NORMAL) for place, letter in enumerate("▁abc")]
FIRST = len(HEAD) + len(BYTES)
BPE = {3: 2}
LLAMA = {1: b"identity", 3: 1, 4: 0, 5: 1}


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number: int, value: int | float | bytes) -> bytes:
    """One field of a protobuf message: a whole number, a 32-bit float, or bytes."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def message(fields: dict) -> bytes:
    return b"".join(field(number, value) for number, value in fields.items())


def write(folder: Path, pieces, trainer=BPE, normalizer=LLAMA) -> Path:
    """A sentencepiece model by its published format; a field of later versions at the end is passed over."""
    entries = [message({1: text.encode(), 2: score, 3: kind}) for text, score, kind in pieces]
    body = b"".join(field(1, entry) for entry in entries) + field(2, message(trainer)) + field(3, message(normalizer))
    (folder / "tokenizer.model").write_bytes(body + field(9, b"later") + varint(10 << 3 | 1) + bytes(8))
    return folder


def assert_refused(folder: Path) -> str:
    """In one error that names the file; returned, for what else it says."""
    with pytest.raises(ModelFolderError, match=r"tokenizer\.model: no tokenizer") as caught:
        read_tokenizer(folder)
    return str(caught.value)


def test_the_best_score_is_merged_first(tmp_path):
    tokenizer = read_tokenizer(write(tmp_path, HEAD + BYTES + TEXT))
    blank, a, b, c = range(FIRST + 3, FIRST + 7)
    assert text_ids(tokenizer, "ab").tolist() == [FIRST + 2]
    assert text_ids(tokenizer, "cab").tolist() == [blank, c, FIRST + 1]
    assert text_ids(tokenizer, "a ab").tolist() == [FIRST, FIRST + 2]
    assert text_ids(tokenizer, "b  a").tolist() == [blank, b, blank, FIRST]
    assert text_ids(tokenizer, "aa").tolist() == [FIRST, a]
    assert with_bos(tokenizer, "ab").tolist() == [1, FIRST + 2]


def test_unknown_characters_are_bytes_and_text_comes_back(tmp_path):
    tokenizer = read_tokenizer(write(tmp_path, HEAD + BYTES + TEXT))
    ids = text_ids(tokenizer, "é b").tolist()
    assert ids == [FIRST + 3, 3 + 0xC3, 3 + 0xA9, FIRST + 3, FIRST + 5]
    assert tokenizer.decode([1, *ids, 2]) == "é b"


def test_a_tokenizer_json_goes_before(tmp_path):
    write(tmp_path, HEAD + BYTES + TEXT)
    read_tokenizer(tmp_path).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer.model").write_bytes(b"damaged")
    assert text_ids(read_tokenizer(tmp_path), "ab").tolist() == [FIRST + 2]


def test_added_tokens_have_their_ids_or_are_refused(tmp_path):
    write(tmp_path, HEAD + BYTES + TEXT)
    after = FIRST + len(TEXT)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<ev_end>": after + 1, "<ev_start>": after}))
    assert text_ids(read_tokenizer(tmp_path), "<ev_start><ev_end>").tolist() == [after, after + 1]
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<ev_start>": after + 7}))
    assert f"the id {after + 7}, which would be {after}" in assert_refused(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        {"trainer": {3: 1}},  # unigram
        {"trainer": {}},
        {"normalizer": LLAMA | {3: 0}},  # no blank before the text
        {"normalizer": LLAMA | {4: 1}},  # runs of blanks become one
        {"normalizer": LLAMA | {5: 0}},
        {"normalizer": {}},
        {"normalizer": LLAMA | {2: b"map"}},
    ],
)
def test_another_kind_of_model_is_refused(tmp_path, other):
    assert "no BPE model that keeps text" in assert_refused(write(tmp_path, HEAD + BYTES + TEXT, **other))


@pytest.mark.parametrize(
    ("pieces", "says"),
    [(HEAD + TEXT, "256 bytes"), (HEAD + HEAD[:1] + BYTES, "twice"), (HEAD[1:] + BYTES, "one unknown"), ([], "one")],
)
def test_a_vocabulary_that_is_not_llamas_kind_is_refused(tmp_path, pieces, says):
    assert says in assert_refused(write(tmp_path, pieces))


@pytest.mark.parametrize("kept", [1, 5, 100, 3000])
def test_a_file_that_is_cut_off_is_refused(tmp_path, kept):
    path = write(tmp_path, HEAD + BYTES + TEXT) / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:kept])
    assert_refused(tmp_path)


@pytest.mark.parametrize("content", [b"\xff" * 40, b"\x0b", b"not a model", b'{"version": "1.0"}'])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    assert_refused(tmp_path)


def test_llamas_own_vocabulary_gives_its_list_of_merges_and_the_studys_lengths(tmp_path, llama_vocabulary):
    """Scores as Llama's file has them: by rank, and runs of blanks one score below all others."""
    kinds = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL} | {text: BYTE for text, _, _ in BYTES}
    pieces = [
        (
            text,
            -1e9 if len(text) > 1 and not text.strip("▁") else -float(max(number - FIRST, 0)),
            kinds.get(text, NORMAL),
        )
        for number, text in enumerate(llama_vocabulary.pieces)
    ]
    tokenizer = read_tokenizer(write(tmp_path, pieces))
    found = json.loads(tokenizer.to_str())["model"]["merges"]
    assert list(map(tuple, found)) == list(llama_vocabulary.merges)
    before, after = PROMPT.format(system=SYSTEM, question="{question}").split("<event>")
    lengths = [
        len(with_bos(tokenizer, before)) + len(text_ids(tokenizer, after.format(question=question)))
        for question in QUESTIONS
    ]
    assert lengths == STUDY_LENGTHS
    fast = llama_vocabulary.tokenizer()
    for text in (f"a{' ' * 23}b", "naïve 道路 🚗", "\n\n  x"):
        assert text_ids(tokenizer, text).tolist() == text_ids(fast, text).tolist()


def test_a_folder_with_neither_is_refused(tmp_path):
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json: missing, and no tokenizer\.model"):
        read_tokenizer(tmp_path)
