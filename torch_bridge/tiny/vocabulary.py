"""One byte-level BPE for both small models, trained on what they are taught to read and to say."""

from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from torch_bridge.eventgpt import PROMPT, SYSTEM
from torch_bridge.folders import BOS, EOS
from torch_bridge.video_llava import AFTER_VIDEO, BEFORE_VIDEO
from xmsd_jax.data.answers import drafter_answer, target_answer
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.world import sample_facts, sample_place, scene_rng

SPECIAL = ("<unk>", BOS, EOS)  # ids 0, 1, 2, as Llama's
TARGET_EXTRA = ("<image>", "<video>", "<pad>")


def corpus(seed: int, scenes: int) -> Iterator[str]:
    """Prompts and answers of both styles about scenes of a split of their own."""
    for number in range(scenes):
        place = sample_place(seed, "vocabulary", number)
        facts = sample_facts(place, scene_rng(place, 0))
        for index, question in enumerate(QUESTIONS):
            yield BEFORE_VIDEO + AFTER_VIDEO.format(question=question) + " " + target_answer(facts, index)
            yield PROMPT.format(system=SYSTEM, question=question) + " " + drafter_answer(facts, index)


def train_tokenizer(size: int, *, seed: int = 0, scenes: int = 400) -> Tokenizer:
    """A tokenizer of exactly `size` ids.

    Raises ValueError when the corpus has too few merges for that size.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(seed, scenes), trainer)
    if tokenizer.get_vocab_size() != size:
        raise ValueError(f"the corpus gives {tokenizer.get_vocab_size()} ids, {size} were asked; ask for fewer")
    return tokenizer
