"""With the real Llama vocabulary the prompts have the study's lengths, and runs of blanks the pieces they must have."""

import pytest
import torch

from tests.llama_vocabulary import STUDY_LENGTHS, NotFetchedError, fetched
from tests.torch_bridge.public_checkpoint import (
    CLIP_CONFIG,
    CLIP_WIDTH,
    clip_weights,
    llama_weights,
    nested,
    write,
    write_checkpoint,
)
from torch_bridge.eventgpt import load_drafter
from xmsd_jax.data.questions import QUESTIONS

# a, n blanks, b: the last blank goes into the piece of b, the others are one piece, whose id this is
RUNS = {2: 29871, 3: 259, 4: 1678, 5: 268, 6: 418, 7: 539, 8: 4706, 9: 308, 10: 3986, 11: 965, 16: 18884, 17: 462}
ODD_TEXTS = [
    "",
    " ",
    "a\n\nb",
    "\n",
    "naïve Straße 道路 🚗\U0001f9ff",
    "<ev_start> <ev_end>",
    "tab\there",
    "1,000.50 km/h",
]


@pytest.fixture(scope="module")
def drafter(llama_vocabulary, tmp_path_factory):
    """A narrow EventGPT with 32,000 ids and the real tokenizer."""
    folder = tmp_path_factory.mktemp("real-vocabulary")
    write(folder / "clip", CLIP_CONFIG, nested(clip_weights()), "safetensors")
    weights = llama_weights(width=8, ffn=16, vocabulary=32000)
    keys = {"hidden_size": 8, "intermediate_size": 16, "vocab_size": 32000, "mm_visual_tower": "clip"}
    write_checkpoint(folder, weights, **keys)
    llama_vocabulary.tokenizer().save(str(folder / "tokenizer.json"))
    return load_drafter(folder)


def test_the_package_holds_llamas_vocabulary(llama_vocabulary):
    assert len(llama_vocabulary.pieces) == 32000
    assert llama_vocabulary.pieces[:3] == ("<unk>", "<s>", "</s>")
    assert llama_vocabulary.pieces[13] == "<0x0A>"
    assert len(llama_vocabulary.merges) == 61249


def test_the_ten_prompts_have_the_studys_numbers_of_text_tokens(drafter):
    pieces = [drafter.prompt_pieces(question) for question in QUESTIONS]
    assert [len(before) + len(after) for before, after in pieces] == STUDY_LENGTHS
    assert all(before[0] == 1 and 1 not in before[1:] and 1 not in after for before, after in pieces)


def test_the_first_question_with_its_event_tokens_is_637_or_641_long(drafter):
    before, after = drafter.prompt_pieces(QUESTIONS[0])
    assert [len(before) + len(after) + frames + 577 for frames in (1, 5)] == [637, 641]


@pytest.mark.parametrize(("blanks", "piece"), RUNS.items())
def test_a_run_of_blanks_is_one_piece(llama_vocabulary, blanks, piece):
    a, b = 263, 289
    assert llama_vocabulary.tokenizer().encode(f"a{' ' * blanks}b", add_special_tokens=False).ids == [a, piece, b]


def test_any_text_is_tokenised_as_the_package_does(drafter, llama_vocabulary):
    """Its encoder is another program; an empty text has no tokens there and here."""
    runs = [f"{' ' * n}a{' ' * n}b{' ' * (40 - n)}" for n in range(40)]
    texts = [*QUESTIONS, *runs, *ODD_TEXTS]
    ids = [drafter.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert ids == llama_vocabulary.encoded_by_the_package(texts)


def test_without_npm_or_a_network_the_reason_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFetchedError, match="npm is not installed"):
        fetched(tmp_path)
    (tmp_path / "npm").write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    with pytest.raises(NotFetchedError, match="no network"):
        fetched(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["npm"]  # nothing half-fetched is left


def test_the_narrow_model_is_a_model(drafter):
    """So that nothing above was about a folder that cannot run."""
    assert drafter.real_vocabulary == 32000
    assert drafter.lm_head(torch.zeros(1, 8)).shape == (1, 32000)
    assert drafter.model.vision_config.hidden_size == CLIP_WIDTH
