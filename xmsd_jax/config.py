"""Strict YAML <-> frozen dataclasses.

A config says what a run does, so nothing in it is guessed: an unknown key, a missing one, a wrong type or a number that
YAML reads as text (`1e-4`) is a `ConfigError` that names the file, the dotted field and the remedy.
Field types: bool, int, float (finite), str, Path, None, Literal, `X | Y`, tuple[X, ...], tuple[X, Y], dict[str, X],
dict[int, X], Any, and other dataclasses. A section that is given in part keeps the rest of the field's default.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from xmsd_jax.typed import ConfigError, Override, Place, UserError, convert, shown, spelled_number

__all__ = ["ConfigError", "UserError", "dump", "fields_of", "find", "load", "to_yaml"]
T = TypeVar("T")


def load(
    cls: type[T],
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, str] | Sequence[str] = (),
) -> T:
    """Build `cls` from a YAML file (or a mapping), then `overrides`.

    Args:
        cls: a dataclass.
        source: a path, or the mapping that a YAML file would give.
        overrides: `{"section.field": "value"}` or `["section.field=value"]`; the field's type reads the value.

    Raises:
        ConfigError: the config does not fit `cls`.
    """
    place = Place("config" if isinstance(source, Mapping) else str(source))
    raw = source if isinstance(source, Mapping) else _read(Path(source))
    for path, text in _pairs(overrides):
        raw = _with_override(raw, path.split("."), _override(text), Place("command line"))
    return convert(cls, raw, place)


def fields_of(source: Path) -> set[str]:
    """The top-level fields that a YAML file gives. Raises ConfigError for one that cannot be read."""
    return set(_read(source))


def dump(config: Any) -> dict[str, Any]:
    """The config as plain YAML values: `load(type(config), dump(config)) == config`."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config) if field.init}


def to_yaml(config: Any) -> str:
    """The config as the text of a YAML file that loads equal."""
    return yaml.safe_dump(dump(config), sort_keys=False, allow_unicode=True, width=120)


def find(name: str, stage: str = "") -> Path:
    """The config file that `name` means: a path, or a packaged config such as `demo/small.yaml` or `small`.

    Raises:
        ConfigError: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    root = packaged_configs()
    relative = name.removeprefix("configs/").removesuffix(".yaml") + ".yaml"
    for candidate in (root / relative, root / stage / relative):
        if candidate.is_file():
            return candidate
    known = sorted(path.relative_to(root).as_posix() for path in root.glob(f"{stage or '**'}/*.yaml"))
    raise ConfigError(f"{name}: no such config file; give a path, or a packaged one: {', '.join(known) or '(none)'}")


def packaged_configs() -> Path:
    """Folder of the configs that come with the package (in a source checkout: the top-level one)."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (PyYAML would keep the last one silently)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key '{twice}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # _Loader is a SafeLoader
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}); give a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict | None):
        raise ConfigError(f"{path}: expected 'key: value' lines, got {shown(raw)}")
    return raw or {}


def _pairs(overrides: Mapping[str, str] | Sequence[str]) -> Iterable[tuple[str, str]]:
    if isinstance(overrides, Mapping):
        return overrides.items()
    split = [item.partition("=") for item in overrides]
    bad = next((key for key, equals, _ in split if not equals), None)
    if bad is not None:
        raise ConfigError(f"command line: {bad}: has no value; write section.field=value")
    return [(key, text) for key, _, text in split]


def _override(text: str) -> Override:
    """The text with its YAML value; `1e-4` is a number here, since a field that wants text takes the text itself."""
    override = Override(text)
    try:
        override.parsed = yaml.load(text, _Loader)  # _Loader is a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError):
        override.parsed = text
    number = spelled_number(override.parsed)
    if number is not None and override.parsed == text:  # not one that the user put in quotes
        override.parsed = number
    return override


def _with_override(raw: Any, keys: list[str], value: Override, place: Place) -> Any:
    """`raw` with `value` at the dotted `keys`; nothing of `raw` is changed in place."""
    if not keys:
        return value
    if dataclasses.is_dataclass(raw):
        raw = dump(raw)
    if not isinstance(raw, Mapping | None):
        raise place.error(f"is not a section, so it has no field '{keys[0]}'")
    section = raw or {}
    inner = _with_override(section.get(keys[0]), keys[1:], value, place.child(keys[0]))
    return {**section, keys[0]: inner}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return dump(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a config holds plain values, not {type(value).__name__}: {value!r}")
