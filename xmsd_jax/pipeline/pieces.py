"""The text of an answer while it grows: pieces that are whole characters, each with the origin of its tokens."""

from collections.abc import Callable, Sequence
from typing import Any

from xmsd_jax.decoding.trace import Origin

OnPiece = Callable[[str, Origin], None]
"""Hears of text as it is verified: pieces that, joined, are the answer's text."""


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of an answer, without its end token and leading spaces."""
    return tokenizer.decode(list(ids)).lstrip()


class Pieces:
    """Text of a growing answer, piece by piece: a token that ends inside a character waits for those that end it."""

    def __init__(self, tokenizer: Any, told: OnPiece) -> None:
        """Tell each piece to `told`, with the origin of its last token."""
        self._tokenizer, self._told = tokenizer, told
        self._ids: list[int] = []
        self._shown = ""
        self._origin: Origin = "target"

    def add(self, ids: Sequence[int], origin: Origin) -> None:
        """Take tokens of one origin."""
        self._origin = origin
        for token in ids:
            self._ids.append(int(token))
            text = text_of(self._tokenizer, self._ids)
            if not text.endswith("\ufffd"):
                self._show(text)

    def close(self) -> None:
        """Tell what still waits, as it is: the answer has ended."""
        self._show(text_of(self._tokenizer, self._ids))

    def _show(self, text: str) -> None:
        if len(text) > len(self._shown) and text.startswith(self._shown):
            self._told(text[len(self._shown) :], self._origin)
            self._shown = text
