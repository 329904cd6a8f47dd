"""Config: what loads is exactly what was written, and all else is one clear error."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmsd_jax import config
from xmsd_jax.config import ConfigError, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Live:
    gamma: int = 5
    temperature: float = 0.0
    mode: Literal["none", "ride", "wait"] = "none"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.gamma < 1:
            raise ValueError(f"gamma must be at least 1, got {self.gamma}; use 5")


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    kind: Literal["world"] = "world"
    contrast: float = 0.3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    kind: Literal["files"] = "files"
    paths: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    name: str
    rate: Annotated[float, "per step"] = 0.5
    fast: bool = False
    live: Live = Live(gamma=3)
    source: World | Files = World()
    sizes: dict[str, int] = dataclasses.field(default_factory=lambda: {"train": 8, "test": 2})
    passes: dict[int, float] = dataclasses.field(default_factory=dict)
    gammas: tuple[int, ...] = (1, 2)
    pair: tuple[str, float] = ("a", 1.0)
    note: str | None = None
    folder: Path = Path("runs")
    level: Literal[1, 2] = 1


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_gives_the_values_that_it_says_and_the_defaults(tmp_path):
    loaded = config.load(
        Study, write(tmp_path, "name: x\nrate: 2\nlive: {mode: ride}\nsource: {kind: files, paths: [a]}")
    )
    assert loaded == Study(name="x", rate=2.0, live=Live(gamma=3, mode="ride"), source=Files(paths=(Path("a"),)))
    assert type(loaded.rate) is float


def test_an_empty_file_is_all_defaults(tmp_path):
    assert config.load(Live, write(tmp_path, "# nothing\n")) == Live()


def test_a_section_in_part_keeps_the_rest_of_its_default():
    assert config.load(Study, {"name": "x", "live": {"temperature": 1}}).live == Live(gamma=3, temperature=1.0)


@pytest.mark.parametrize(
    ("text", "field", "remedy"),
    [
        ("rates: 1", "rates", "did you mean 'rate'?"),
        ("live: {gama: 1}", "live.gama", "did you mean 'gamma'?"),
        ("zzz: 1", "zzz", "known: name, rate"),
        ("rate: 1e-4", "rate", "write 0.0001"),
        ("live: {gamma: '5'}", "live.gamma", "write 5"),
        ("rate: .nan", "rate", "a number"),
        ("rate: .inf", "rate", "a number"),
        ("rate: true", "rate", "a number"),
        (f"rate: 1{'0' * 400}", "rate", "a number"),
        ("live: {gamma: 1.0}", "live.gamma", "a whole number"),
        ("live: {gamma: true}", "live.gamma", "a whole number"),
        ("live: {gamma: 0}", "live", "use 5"),
        ("live: {mode: rides}", "live.mode", "did you mean 'ride'?"),
        ("live: {limit: x}", "live.limit", "a whole number"),
        ("live: 3", "live", "fields of Live"),
        ("live:", "live", "fields of Live"),
        ("fast: 1", "fast", "true or false"),
        ("note: 2026-01-02", "note", "put it in quotes"),
        ("note: no", "note", "put it in quotes"),
        ("gammas: 1", "gammas", "a list"),
        ("gammas: [1, x]", "gammas.1", "a whole number"),
        ("pair: [a]", "pair", "a list of 2"),
        ("sizes: [1]", "sizes", "key: value"),
        ("sizes: {1: 2}", "sizes.1", "put it in quotes"),
        ("sizes: {train: 1.5}", "sizes.train", "a whole number"),
        ("passes: {'6': 1.5}", "passes.6", "write a plain number"),
        ("passes: {true: 1.5}", "passes.True", "write a plain number"),
        ("passes: {6: fast}", "passes.6", "a number"),
        ("folder: 3", "folder", "put it in quotes"),
        ("folder: ''", "folder", "a path"),
        ("level: true", "level", "expected one of 1, 2"),
        ("source: {kind: file}", "source.kind", "expected one of world"),
        ("source: {kind: files, contrast: 1.0}", "source.contrast", "known: kind, paths"),
        ("source: 5", "source", "World or Files"),
    ],
)
def test_bad_input_names_file_field_and_remedy(tmp_path, text, field, remedy):
    path = write(tmp_path, f"name: x\n{text}")
    with pytest.raises(ConfigError) as caught:
        config.load(Study, path)
    assert str(caught.value).startswith(f"{path}: {field}: ")
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"name: x\nname: y", "given twice"),
        (b"live: {gamma: 1, gamma: 2}", "given twice"),
        (b"name: [", "not valid YAML"),
        (b"name: \xff\xfe", "UTF-8"),
        (b"- 1", "key: value"),
        (b"just text", "key: value"),
        (b"name: 2026-99-99", "not valid YAML"),
        (b"name: !!python/object/apply:os.getcwd []", "not valid YAML"),
        (b"[" * 5000, "not valid YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, content, problem):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=problem) as caught:
        config.load(Study, path)
    assert str(caught.value).startswith(str(path))


def test_a_missing_file_or_field_says_so(tmp_path):
    with pytest.raises(ConfigError, match="no such config file"):
        config.load(Study, tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"name: missing; add it \(text\)"):
        config.load(Study, {})


def test_overrides_are_read_by_the_type_of_their_field():
    texts = {
        "name": "5",
        "rate": "1e-4",
        "fast": "true",
        "live.gamma": "7",
        "live.mode": "wait",
        "live.limit": "null",
        "gammas": "[3, 4]",
        "folder": "7",
        "note": "no",
        "level": "2",
    }
    loaded = config.load(Study, {"name": "x", "live": {"limit": 3, "temperature": 0.5}}, texts)
    live = Live(gamma=7, mode="wait", temperature=0.5)
    expected = Study(name="5", rate=1e-4, fast=True, live=live, gammas=(3, 4), folder=Path("7"), note="no", level=2)
    assert loaded == expected
    assert config.load(Live, {}, ["gamma=9", "mode=ride"]) == Live(gamma=9, mode="ride")


def test_an_override_of_one_key_leaves_the_others():
    assert config.load(Study, {"name": "x"}, {"sizes.train": "3"}).sizes == {"train": 3, "test": 2}
    assert config.load(Study, {"name": "x", "sizes": {"a": 1}}, {"sizes.b": "2"}).sizes == {"a": 1, "b": 2}
    assert config.load(Study, {"name": "x"}, {"sizes": "{a: 1}"}).sizes == {"a": 1}


def test_an_override_may_change_the_kind_of_a_section():
    loaded = config.load(Study, {"name": "x"}, {"source.kind": "files", "source.paths": "[a, b]"})
    assert loaded.source == Files(paths=(Path("a"), Path("b")))


@pytest.mark.parametrize(
    ("key", "text", "problem"),
    [
        ("live.gama", "1", "live.gama: unknown key; did you mean 'gamma'?"),
        ("live.gamma", "1e-4", "live.gamma: expected a whole number, got 0.0001"),
        ("live.gamma", "five", "live.gamma: expected a whole number, got 'five'"),
        ("rate", "'2'", "rate: expected a number"),
        ("rate", "[", "rate: expected a number"),
        ("name.first", "x", "name: is not a section"),
        ("live", "3", "live: expected a section"),
        ("live.gamma", "0", "live: gamma must be at least 1"),
    ],
)
def test_a_bad_override_names_the_command_line(key, text, problem):
    with pytest.raises(ConfigError) as caught:
        config.load(Study, {"name": "x", "live": {"mode": "ride"}}, {key: text})
    assert problem in str(caught.value)


def test_loading_changes_nothing_that_was_given():
    given_mapping = {"name": "x", "live": {"mode": "ride"}}
    config.load(Study, given_mapping, {"live.gamma": "2"})
    assert given_mapping == {"name": "x", "live": {"mode": "ride"}}


def test_a_type_that_no_config_can_have_is_the_developers_error():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Odd:
        where: complex = 0j

    with pytest.raises(TypeError, match="where"):
        config.load(Odd, {"where": 1})
    with pytest.raises(TypeError, match="complex"):
        config.dump(Odd())


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)
lives = st.builds(
    Live,
    gamma=st.integers(min_value=1),
    temperature=numbers,
    mode=st.sampled_from(["none", "ride", "wait"]),
    limit=st.none() | st.integers(),
)
paths = st.text("abc./ -:#'\"", min_size=1, max_size=9).map(Path)
studies = st.builds(
    Study,
    name=names,
    rate=numbers,
    fast=st.booleans(),
    live=lives,
    source=st.builds(World, kind=st.just("world"), contrast=numbers)
    | st.builds(Files, kind=st.just("files"), paths=st.lists(paths, max_size=3).map(tuple)),
    sizes=st.dictionaries(names, st.integers(), max_size=3),
    passes=st.dictionaries(st.integers(), numbers, max_size=3),
    gammas=st.lists(st.integers(), max_size=3).map(tuple),
    pair=st.tuples(names, numbers),
    note=st.none() | names,
    folder=paths,
    level=st.sampled_from([1, 2]),
)


@given(studies)
def test_dump_and_load_give_the_same_config(tmp_path_factory, study):
    assert config.load(Study, config.dump(study)) == study
    path = tmp_path_factory.mktemp("round") / "study.yaml"
    path.write_text(config.to_yaml(study), encoding="utf-8")
    assert config.load(Study, path) == study


@given(names.filter(lambda name: name not in {field.name for field in dataclasses.fields(Study)}))
def test_any_unknown_key_is_refused(key):
    with pytest.raises(ConfigError, match="unknown key"):
        config.load(Study, {"name": "x", key: 1})


anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([field.name for field in dataclasses.fields(Study)]), anything)
def test_any_value_fits_its_field_exactly_or_is_a_user_error(field, value):
    loaded = load_or_error(Study, {"name": "x", field: value})
    if isinstance(loaded, UserError):
        assert f"config: {field}" in str(loaded)
        return
    assert config.load(Study, config.dump(loaded)) == loaded


@given(st.text(max_size=12))
def test_any_override_text_is_a_value_or_a_user_error(text):
    assert config.load(Study, {"name": "x"}, {"name": text}).name == text
    loaded = load_or_error(Study, {"name": "x"}, {"live.gamma": text})
    assert "command line: live" in str(loaded) if isinstance(loaded, UserError) else loaded.live.gamma >= 1


def load_or_error(*arguments) -> Study | UserError:
    try:
        return config.load(*arguments)
    except UserError as error:
        return error


def test_packaged_configs_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "configs-root"
    (root / "demo").mkdir(parents=True)
    (root / "demo" / "small.yaml").write_text("")
    monkeypatch.setattr(config, "packaged_configs", lambda: root)
    wanted = root / "demo" / "small.yaml"
    assert {config.find(n, "demo") for n in ("small", "small.yaml", "demo/small", "configs/demo/small.yaml")} == {
        wanted
    }
    (tmp_path / "small.yaml").write_text("")
    assert config.find("small.yaml", "demo") == Path("small.yaml")
    with pytest.raises(ConfigError, match="packaged one: demo/small"):
        config.find("smal", "demo")
