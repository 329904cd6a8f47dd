"""The tokenizer that is shipped is the one that the code makes."""

import json
from pathlib import Path

import pytest

import torch_bridge
from torch_bridge.tiny.models import save_tokenizer
from torch_bridge.tiny.vocabulary import TARGET_EXTRA, corpus, train_tokenizer

WEIGHTS = Path(torch_bridge.__file__).parent / "tiny" / "weights"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(1024)


@pytest.mark.parametrize(("which", "extra"), [("target", TARGET_EXTRA), ("drafter", ())])
def test_training_gives_the_shipped_file_byte_for_byte(tokenizer, which, extra, tmp_path):
    save_tokenizer(tokenizer, tmp_path, extra)
    assert (tmp_path / "tokenizer.json").read_bytes() == (WEIGHTS / which / "tokenizer.json").read_bytes()


def test_any_text_survives_a_round_trip(tokenizer):
    for text in ("A red car, heading left.", "ünïcode 漢字 \n\t~", *list(corpus(1, 1))[:4]):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_a_vocabulary_that_the_corpus_cannot_fill_is_refused():
    with pytest.raises(ValueError, match=r"the corpus gives \d+ ids, 4096 were asked; ask for fewer"):
        train_tokenizer(4096, scenes=4)


def test_the_tokenizer_file_is_plain_json():
    for which in ("target", "drafter"):
        assert json.loads((WEIGHTS / which / "tokenizer.json").read_text())["model"]["type"] == "BPE"
