"""Plain YAML values -> values of annotated types, strictly; the half of `config` that knows no file format."""

import dataclasses
import math
import types
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
_MISSING = dataclasses.MISSING
_SCALARS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    types.NoneType: "null",
    Any: "anything",
}


class UserError(ValueError):
    """Bad input from the user: the command line prints it as one line and exits with code 2."""


class ConfigError(UserError):
    """A config that breaks an invariant: file, dotted field, what came, what to do."""


class Override(str):
    """A text from the command line; `parsed` is what it means where the field is not itself a text."""

    parsed: Any


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in which file a value stands, to say so in errors."""

    file: str
    path: tuple[str, ...] = ()

    def child(self, key: object, value: object = None) -> "Place":
        """The place of `value`, which stands under `key` here."""
        return Place("command line" if _is_override(value) else self.file, (*self.path, str(key)))

    def error(self, problem: str) -> ConfigError:
        """`file: dotted.field: problem`."""
        return ConfigError(": ".join(part for part in (self.file, ".".join(self.path), problem) if part))


def type_name(annotation: Any) -> str:
    """What a field accepts, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin is Literal:
        return " | ".join(str(option) for option in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(member) for member in arguments)
    if origin is tuple:
        return f"a list of {type_name(arguments[0])}"
    if origin in (dict, Mapping):
        return f"keys with {type_name(arguments[1])}"
    return _SCALARS.get(annotation) or getattr(annotation, "__name__", str(annotation))


def convert(annotation: Any, value: Any, place: Place, default: Any = _MISSING) -> Any:
    """`value` as the type `annotation`; a section that is given in part keeps the rest of `default`.

    Raises:
        ConfigError: the value does not fit.
        TypeError: `annotation` is no type that a config may have.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return convert(arguments[0], value, place, default)
    if origin in (Union, types.UnionType):
        return _union(annotation, value, place, default)
    if isinstance(value, Override) and annotation not in (str, Path):
        value = str(value) if origin is Literal and value in arguments else value.parsed
    if origin is Literal:
        return _literal(arguments, value, place)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return _section(annotation, value, place, default)
    if origin is tuple:
        return _tuple(arguments, value, place)
    if origin in (dict, Mapping):
        return _mapping(arguments, value, place, default)
    return _scalar(annotation, value, place)


def field_defaults(cls: type, kept: Any = None) -> dict[str, Any]:
    """Default of each field of a dataclass, dataclasses.MISSING where it has none; those of `kept` if it is a `cls`."""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    if type(kept) is cls:
        return {name: getattr(kept, name) for name in fields}
    return {name: f.default if f.default_factory is _MISSING else f.default_factory() for name, f in fields.items()}


def _section(cls: type[T], value: Any, place: Place, default: Any) -> T:
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise place.error(f"expected a section with the fields of {cls.__name__}, got {shown(value)}")
    defaults, hints = field_defaults(cls, default), get_type_hints(cls, include_extras=True)
    given = {}
    for key, item in value.items():
        at = place.child(key, item)
        if key not in defaults:
            raise at.error(f"unknown key; {_suggestion(str(key), list(defaults))}")
        given[key] = convert(hints[key], item, at, defaults[key])
    for name, missing in defaults.items():
        if missing is _MISSING and name not in given:
            raise place.child(name).error(f"missing; add it ({type_name(hints[name])})")
    try:
        return cls(**{**defaults, **given})
    except ValueError as error:  # an invariant that the dataclass itself checks
        raise place.error(str(error)) from None


def _union(annotation: Any, value: Any, place: Place, default: Any) -> Any:
    """Null where it is allowed, else the first member that takes the value (sections: of the kind that it names)."""
    members = [member for member in get_args(annotation) if member is not types.NoneType]
    if len(members) < len(get_args(annotation)) and (value is None or (_is_override(value) and value == "null")):
        return None
    is_section = isinstance(value, Mapping)
    if is_section:
        members = [member for member in members if _kind_fits(member, value)] or members
        members.sort(key=lambda member: member is not type(default))  # a section in part continues its default
    errors = []
    for member in members:
        try:
            return convert(member, value, place, default)
        except ConfigError as error:
            errors.append(error)
    if len(members) == 1 or is_section:
        raise errors[0]
    raise place.error(f"expected {type_name(annotation)}, got {shown(value)}")


def _kind_fits(member: Any, value: Mapping[str, Any]) -> bool:
    """False where a Literal field of this dataclass excludes the value that is given for it."""
    if not dataclasses.is_dataclass(member):
        return True
    literals = {name: hint for name, hint in get_type_hints(member).items() if get_origin(hint) is Literal}
    return all(value[name] in get_args(hint) for name, hint in literals.items() if name in value)


def _literal(options: tuple[Any, ...], value: Any, place: Place) -> Any:
    for option in options:
        if option == value and type(option) is type(value):  # 1 is neither True nor 1.0
            return option
    near = _suggestion(str(value), [str(option) for option in options])
    raise place.error(f"expected one of {', '.join(map(str, options))}, got {shown(value)}; {near}")


def _tuple(arguments: tuple[Any, ...], value: Any, place: Place) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise place.error(f"expected a list [.., ..], got {shown(value)}")
    kinds = [arguments[0]] * len(value) if arguments[1:] == (...,) else list(arguments)
    if len(kinds) != len(value):
        raise place.error(f"expected a list of {len(kinds)}, got {len(value)} values")
    return tuple(convert(kind, item, place.child(i)) for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _mapping(arguments: tuple[Any, ...], value: Any, place: Place, default: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise place.error(f"expected 'key: value' lines, got {shown(value)}")
    wrong = next((key for key in value if not _is_key(arguments[0], key)), None)
    if wrong is not None:
        remedy = "write a plain number" if arguments[0] is int else "put it in quotes"
        raise place.child(wrong).error(f"a key must be {type_name(arguments[0])}, got {shown(wrong)}; {remedy}")
    one_key = _is_override(value) and isinstance(default, Mapping)  # `--sizes.train 3` leaves the other keys alone
    given = {key: convert(arguments[1], item, place.child(key, item)) for key, item in value.items()}
    return {**default, **given} if one_key else given


def _is_key(annotation: Any, key: Any) -> bool:
    return type(key) is int if annotation is int else isinstance(key, str)


def _scalar(annotation: Any, value: Any, place: Place) -> Any:
    if annotation is Any:
        return value
    if annotation not in _SCALARS:
        raise TypeError(f"{'.'.join(place.path)}: a config field cannot be {annotation!r}; use a type of config.py")
    if annotation is float and type(value) in (int, float) and _is_finite(value):
        return float(value)
    if annotation is Path and isinstance(value, str | Path) and str(value):
        return Path(value)
    if annotation is str and isinstance(value, str):
        return str(value)
    if annotation in (bool, int, types.NoneType) and type(value) is annotation:
        return value
    raise place.error(f"expected {type_name(annotation)}, got {shown(value)}{_remedy(annotation, value)}")


def _remedy(annotation: Any, value: Any) -> str:
    if annotation in (str, Path) and not isinstance(value, list | Mapping):
        return "; put it in quotes"
    number = spelled_number(value)
    if number is None or annotation not in (int, float) or (annotation is int and not number.is_integer()):
        return ""
    return f"; YAML reads this as text, write {annotation(number)!r}"


def spelled_number(value: Any) -> float | None:
    """The finite number that a text spells, else None."""
    try:
        number = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def shown(value: Any) -> str:
    """A value and its type for an error, shortened."""
    text = "null" if value is None else repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(value).__name__})"


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the range of float
        return False


def _is_override(value: Any) -> bool:
    """Whether all of the value came from the command line."""
    if isinstance(value, Mapping):
        return bool(value) and all(_is_override(item) for item in value.values())
    return isinstance(value, Override)


def _suggestion(key: str, known: list[str]) -> str:
    near = get_close_matches(key, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known) or 'none'}"
