"""A made-up tokenizer whose prompts are as long as under Llama's vocabulary, within 10 %; for measuring speed only.

Words and signs are pieces, capitals come in pairs, as Llama's pieces of USER and ASSISTANT do: question 1 takes 59 text
tokens of the drafter, as in the study. Ids that no prompt uses are the made-up words w90, w91, ...; what it decodes of
an answer is no text.
"""

import re

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from torch_bridge.eventgpt import PROMPT, SYSTEM
from torch_bridge.video_llava import AFTER_VIDEO, BEFORE_VIDEO
from xmsd_jax.config import ConfigError
from xmsd_jax.data.questions import QUESTIONS

SPECIAL = ("<unk>", "<s>", "</s>")
PLACEHOLDERS = ("<image>", "<video>")
_PIECE = r" ?[A-Z]{2}| ?[A-Za-z][a-z]*| ?[^A-Za-z]"


def made_tokenizer(vocabulary: int, *, placeholders: bool = False) -> Tokenizer:
    """A tokenizer of `vocabulary` ids; with `placeholders` also `<image>` and `<video>` right after them.

    Raises:
        ConfigError: the prompts have more pieces than that.
    """
    texts = [PROMPT.format(system=SYSTEM, question=""), BEFORE_VIDEO, AFTER_VIDEO.format(question=""), *QUESTIONS]
    pieces = list(dict.fromkeys([*SPECIAL, *(piece for text in texts for piece in re.findall(_PIECE, text))]))
    if len(pieces) > vocabulary:
        raise ConfigError(f"shape.vocabulary: the prompts have {len(pieces)} pieces, got {vocabulary}; give that many")
    words = [*pieces, *(f"w{number}" for number in range(len(pieces), vocabulary))]
    model = models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=SPECIAL[0])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), "isolated")
    tokenizer.add_special_tokens([*SPECIAL, *(PLACEHOLDERS if placeholders else ())])
    return tokenizer
