"""Turning a plan of clauses into sentences, and choosing a wording by what is visible, the same on every machine."""

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Facts = Mapping[str, Any]
Clauses = Mapping[str, Callable[[Facts, int], str]]
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


def pick(options: Sequence[Any], *keys: object) -> Any:
    """One of the options, fixed by the keys (CRC-32 of their text: the same on every machine)."""
    return options[zlib.crc32("|".join(map(str, keys)).encode()) % len(options)]


def sentences(plan: str, clauses: Clauses, facts: Facts, question: int) -> str:
    """`plan` names clauses; ';' joins two into a sentence and '.' ends one."""
    parts = re.split(r"([;.])", plan)
    words = [clauses[p](facts, question) if p in clauses else p for p in (s.strip() for s in parts) if p]
    text = re.sub(r"\s+([,.])", r"\1", " ".join(w if w != ";" else "," for w in words if w))
    text = re.sub(r"(?:, )?(?:,\s*)+(?=[,.])", "", text)
    return ". ".join(s[:1].upper() + s[1:] for s in text.rstrip(".").split(". ") if s) + "."
