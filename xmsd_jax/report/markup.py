"""HTML and SVG by nested calls; text is escaped by construction, so hostile text stays text."""

from html import escape
from typing import Any

_VOID = frozenset({"meta", "img", "br"})


class Markup(str):
    """Text that is markup already; everything else is escaped where it enters."""

    __slots__ = ()


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """Make one element.

    Args:
        name: of the element.
        children: Markup as it is, None for nothing, anything else as escaped text.
        attributes: `class_` for class; underscores become hyphens; None and False leave the attribute out.
    """
    pairs = ((k.rstrip("_").replace("_", "-"), v) for k, v in attributes.items() if v is not None and v is not False)
    start = name + "".join(f' {k}="{escape(str(v), quote=True)}"' for k, v in pairs)
    return Markup(f"<{start}>") if name in _VOID and not children else Markup(f"<{start}>{join(*children)}</{name}>")


def join(*children: Any) -> Markup:
    """Put children one after the other: Markup as it is, None for nothing, the rest escaped."""
    return Markup(
        "".join(c if isinstance(c, Markup) else escape(str(c), quote=False) for c in children if c is not None)
    )
