"""The fields of a config dataclass with their types, defaults and documentation, for `xmsd STAGE --help`."""

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from xmsd_jax.typed import field_defaults, type_name


def describe(cls: type, prefix: str = "", kept: Any = None) -> Iterator[str]:
    """Lines for a config class: its documentation, its fields `--section.field <type> (default)`, then its sections."""
    yield f"\n{prefix.rstrip('.') or cls.__name__}: {_documentation(cls)}"
    defaults = field_defaults(cls, kept)
    hints = {name: hint for name, hint in get_type_hints(cls).items() if name in defaults}
    for name, hint in hints.items():
        yield f"  --{prefix}{name} <{type_name(hint)}> ({_default(defaults[name])})"
    for name, hint in hints.items():
        for section in sections(hint):
            yield from describe(section, f"{prefix}{name}.", defaults[name])


def sections(hint: Any) -> list[type]:
    """The dataclasses that a field of this type may be: itself, or the members of its union (not those of a list)."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [member for member in members if isinstance(member, type) and dataclasses.is_dataclass(member)]


def _documentation(cls: type) -> str:
    written = inspect.getdoc(cls) or ""
    is_generated = written.startswith(f"{cls.__name__}(")  # what `dataclass` fills in where there is no docstring
    return "" if is_generated else written.replace("\n", "\n    ")


def _default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    return "see below" if dataclasses.is_dataclass(value) else f"default {_shown(value)}"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(_shown(item) for item in value)}]"
    return value.as_posix() if isinstance(value, Path) else str(value)
