"""Command line: fast help, one clear line for bad input, exit codes that scripts can trust."""

import dataclasses
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from xmsd_jax import cli, config
from xmsd_jax.config import UserError
from xmsd_jax.runs import RunFailed

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Live:
    """How it decodes."""

    gamma: int = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipsConfig:
    """What the fake stage does."""

    outcome: str = "done"
    rate: float = 0.5
    folder: Path | None = None
    live: Live = Live(gamma=3)


def run(configuration: ClipsConfig, run_dir: Path, fresh: bool = False) -> None:
    CALLS.append((configuration, run_dir, fresh, os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"]))
    outcomes = {"bad": UserError("a.npy: t: unsorted;\n sort it"), "failed": RunFailed("2 answers diverge")}
    outcomes |= {"stopped": KeyboardInterrupt(), "bug": ZeroDivisionError("bug")}
    if configuration.outcome in outcomes:
        raise outcomes[configuration.outcome]


CALLS: list[tuple[ClipsConfig, Path, bool, str]] = []


@pytest.fixture
def stage(monkeypatch, tmp_path):
    """A stage `clips` that does what its config says, a config file for it, and the list of its calls."""
    module = types.ModuleType("xmsd_jax.pipeline.clips")
    module.run, module.ClipsConfig = run, ClipsConfig  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fast.yaml").write_text("rate: 0.25\n")
    CALLS.clear()
    return CALLS


def test_a_stage_gets_its_config_with_overrides_its_folder_and_fresh(stage):
    assert cli.main(["clips", "fast.yaml", "--live.gamma", "-7", "--folder=a=b", "--fresh"]) == 0
    expected = ClipsConfig(rate=0.25, live=Live(gamma=-7), folder=Path("a=b"))
    assert stage == [(expected, Path("runs/clips/fast"), True, "false")]


def test_options_may_stand_before_the_config_and_name_the_run_folder(stage):
    assert cli.main(["clips", "--run-dir", "there", "--rate", "1e-4", "fast.yaml"]) == 0
    assert stage == [(ClipsConfig(rate=1e-4), Path("there"), False, "false")]


def test_the_memory_setting_of_the_user_is_kept(stage, monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    cli.main(["clips", "fast.yaml"])
    assert stage[0][3] == "true"


@pytest.mark.parametrize(
    ("outcome", "code", "line"),
    [
        ("bad", 2, "xmsd: error: a.npy: t: unsorted; sort it\n"),
        ("failed", 1, "xmsd: failed: 2 answers diverge\n"),
        ("stopped", 130, "xmsd: interrupted: run the same command again to continue\n"),
    ],
)
def test_an_outcome_has_its_code_and_one_line(stage, capsys, outcome, code, line):
    assert cli.main(["clips", "fast.yaml", "--outcome", outcome]) == code
    assert capsys.readouterr().err == line


def test_a_bug_is_not_hidden(stage):
    with pytest.raises(ZeroDivisionError):
        cli.main(["clips", "fast.yaml", "--outcome", "bug"])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["clip"], "command line: clip: no such stage; known: demo, clips"),
        (["clips"], "command line: clips: needs a CONFIG"),
        (["clips", "none.yaml"], "none.yaml: no such config file"),
        (["clips", "a.yaml", "b.yaml"], "command line: b.yaml: one CONFIG"),
        (["clips", "fast.yaml", "--rate"], "command line: --rate: has no value"),
        (["clips", "fast.yaml", "--rate", "--fresh"], "command line: --rate: has no value"),
        (["clips", "fast.yaml", "--", "x"], "command line: --: has no value"),
        (["clips", "fast.yaml", "-x"], "command line: -x: one CONFIG"),
        (["clips", "fast.yaml", "--rate", "1", "--rate", "2"], "command line: --rate: is given twice"),
        (["clips", "fast.yaml", "--rat", "1"], "command line: rat: unknown key; did you mean 'rate'?"),
        (["clips", "fast.yaml", "--rate", "fast"], "command line: rate: expected a number, got 'fast'"),
        (["clips", "fast.yaml", "--run-dir", ""], "command line: --run-dir: is empty"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(stage, capsys, arguments, problem):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"xmsd: error: {problem}")
    assert error.count("\n") == 1
    assert not stage


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rate: 1e-4\n", "rate: expected a number, got '1e-4' (str); YAML reads this as text, write 0.0001"),
        ("live: {gama: 3}\n", "live.gama: unknown key; did you mean 'gamma'?"),
        ("rate: [\n", "is not valid YAML"),
    ],
)
def test_a_bad_file_is_named_with_field_and_remedy(stage, capsys, text, problem):
    Path("bad.yaml").write_text(text)
    assert cli.main(["clips", "bad.yaml"]) == 2
    assert capsys.readouterr().err.startswith(f"xmsd: error: bad.yaml: {problem}")


def test_help_of_a_stage_lists_every_field_with_type_and_default(stage, capsys):
    assert cli.main(["clips", "--help"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "usage: xmsd clips CONFIG",
        "What the fake stage does.",
        "--rate <a number> (default 0.5)",
        "--folder <a path or null> (default null)",
        "--live <Live> (see below)",
        "How it decodes.",
        "--live.gamma <a whole number> (default 3)",
    ):
        assert part in shown
    assert not stage


def test_version_and_help_are_answers_but_no_command_is_an_error(capsys):
    assert cli.main(["--version"]) == 0
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("xmsd 0.1.0\n")
    assert all(f"\n  {name} " in shown for name in cli.STAGES)
    assert cli.main([]) == 2


def seconds(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "xmsd_jax.cli", *arguments], check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - start


def test_help_takes_less_than_a_second():
    assert min(seconds("--help") for _ in range(3)) < 1.0


def test_the_process_exits_with_the_code_and_without_a_traceback():
    command = [sys.executable, "-m", "xmsd_jax.cli", "clips", "none.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("xmsd: error: none.yaml: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", list(cli.STAGES))
def test_every_stage_of_the_table_exists_and_describes_its_config(name, capsys):
    module, config_class = cli.stage_module(cli.STAGES[name])
    assert dataclasses.is_dataclass(config_class)
    assert callable(module.run)
    assert cli.main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"--{field.name} " in shown for field in dataclasses.fields(config_class))


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("fit_part: first half\n", "AnswersConfig"),
        ("trained_on: {}\nevaluate: {store: there}\n", "StoredStatesConfig"),
        ("store: somewhere\n", "EvaluateConfig"),
    ],
)
def test_a_config_with_the_field_of_a_variant_goes_to_its_stage(monkeypatch, tmp_path, text, chosen):
    calls = []
    for given in ((), {"fit_part"}, {"trained_on"}):
        module, config_class = cli.stage_module(cli.STAGES["evaluate"], given)
        monkeypatch.setattr(module, "run", lambda c, d, fresh, at=config_class: calls.append((type(c), at, d.name)))
    (tmp_path / "judge.yaml").write_text(text)
    assert cli.main(["evaluate", str(tmp_path / "judge.yaml")]) == 0
    ((given, called, folder),) = calls
    assert (given.__name__, given, folder) == (chosen, called, "judge")


def test_a_variant_refuses_the_fields_of_the_other_one(tmp_path, capsys):
    (tmp_path / "judge.yaml").write_text("fit_part: all\nstore: somewhere\n")
    assert cli.main(["evaluate", str(tmp_path / "judge.yaml")]) == 2
    assert "store: unknown key" in capsys.readouterr().err


def test_help_shows_the_fields_of_a_variant_too(capsys):
    assert cli.main(["evaluate", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "or, in a config with fit_part" in shown
    for given in ({"fit_part"}, {"trained_on"}):
        for field in dataclasses.fields(cli.stage_module(cli.STAGES["evaluate"], given)[1]):
            assert f"--{field.name} " in shown


def test_help_of_stages_names_the_fields_of_their_sections(capsys):
    for name, fields in {
        "study": ("--adapters <", "--live.gamma <", "--live.timed <", "--validation <"),
        "proxy": ("--original <", "--costs <", "--evaluation <"),
        "simulate": ("--costs <", "--imposed <", "--gamma <"),
        "benchmark": ("--training <", "--live.prefill_draft_len <"),
    }.items():
        assert cli.main([name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert [field for field in fields if field not in shown] == []


def test_a_reader_that_has_gone_ends_a_command_quietly():
    command = [sys.executable, "-m", "xmsd_jax.cli", "adapters", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_adapters_are_listed_as_json_and_as_a_table(capsys):
    assert cli.main(["adapters", "--json", "--width", "64"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["width"] == 64
    assert [one["kind"] for one in listed["adapters"]][:2] == ["L1", "L2"]
    assert {one["kind"]: one["offset"] for one in listed["adapters"]}["B1"] == 1
    assert cli.main(["adapters"]) == 0
    assert "B1" in capsys.readouterr().out
    assert cli.main(["adapters", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: xmsd adapters")


@pytest.mark.parametrize("arguments", [["L1"], ["--width", "wide"], ["--fresh"], ["--depth", "3"]])
def test_adapters_take_a_width_and_nothing_else(capsys, arguments):
    assert cli.main(["adapters", *arguments]) == 2
    assert capsys.readouterr().err.startswith("xmsd: error: command line: adapters: takes --width N and --json")


def packaged() -> list[tuple[str, Path]]:
    root = config.packaged_configs()
    return [(name, path) for name in cli.STAGES for path in sorted(root.glob(f"{name}/*.yaml"))]


@pytest.mark.parametrize(("name", "path"), packaged(), ids=lambda value: getattr(value, "stem", value))
def test_every_packaged_config_loads_and_reloads_equal(name, path):
    stage = cli.STAGES[name]
    _, config_class = cli.stage_module(stage, config.fields_of(path))
    loaded = config.load(config_class, path)
    assert config.load(config_class, config.dump(loaded)) == loaded


@pytest.mark.parametrize("name", [name for name, stage in cli.STAGES.items() if stage.default])
def test_a_default_config_is_packaged(name):
    assert config.find(str(cli.STAGES[name].default), name).is_file()
