"""`xmsd STAGE [CONFIG] [--section.field value] [--run-dir DIR] [--fresh]`: the only reader of the command line.

Exit codes: 0 done; 1 the run finished but failed what it must hold; 2 bad input, with one line `xmsd: error: ...` that
names the file, the field and the remedy; 130 interrupted. Nothing heavy is imported before a stage starts.
"""

import dataclasses
import errno
import importlib
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from xmsd_jax import __version__
from xmsd_jax.typed import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageEntry:
    """A stage of the table: `xmsd_jax.pipeline.<name>` has the dataclass `config` and `run(config, run_dir, fresh)`.

    `variants`: (field, module, dataclass): a config that holds this field belongs to that module instead. `options`:
    more arguments of `run`, given as --name VALUE, or as --name alone where VALUE is None: name -> (VALUE, meaning).
    """

    name: str
    config: str
    purpose: str
    default: str | None = None
    variants: tuple[tuple[str, str, str], ...] = ()
    options: dict[str, tuple[str | None, str]] = dataclasses.field(default_factory=dict)


STAGES = {
    entry.name: entry
    for entry in (
        StageEntry(
            name="demo",
            config="DemoConfig",
            purpose="the whole road on the small world: clips, states, adapters, live decoding, report",
            default="demo/small.yaml",
        ),
        StageEntry(name="clips", config="ClipsConfig", purpose="make or convert clips: events, video, questions"),
        StageEntry(
            name="extract",
            config="ExtractConfig",
            purpose="paired hidden states and ids of both models",
            options={
                "shard": ("i/n", "write the i-th of n parts, i = 1..n; n processes may write one --run-dir at once"),
                "merge-check": (None, "verify that all parts are there, list what is missing, finish the stores"),
                "merge-from": ("DIR,DIR", "before that, take over the shards of these run folders"),
            },
        ),
        StageEntry(name="train", config="TrainConfig", purpose="one adapter on stored states, in JAX"),
        StageEntry(
            name="sweep", config="SweepConfig", purpose="a grid of trainings, many in one compiled program; ranked"
        ),
        StageEntry(
            name="evaluate",
            config="EvaluateConfig",
            purpose="adapters and control rows on held-out answers: states, tokens, walks",
            variants=(
                ("fit_part", "answers", "AnswersConfig"),
                ("trained_on", "stored_states", "StoredStatesConfig"),
            ),
        ),
        StageEntry(
            name="proxy", config="ProxyConfig", purpose="predicted speed-up over the draft length, from measured parts"
        ),
        StageEntry(
            name="simulate",
            config="SimulateConfig",
            purpose="expected speed-up over the draft length of each drafter, from a store and a cost file",
        ),
        StageEntry(
            name="study",
            config="StudyConfig",
            purpose="all adapters on one store: train, judge, predict, decode, report",
        ),
        StageEntry(
            name="benchmark",
            config="BenchmarkConfig",
            purpose="live speculative decoding, wall clock; or the speed of training, extraction, or a 7B engine",
            variants=(
                ("torch_modes", "train_speed", "TrainSpeedConfig"),
                ("single_answers", "extract_speed", "ExtractSpeedConfig"),
                ("imposed", "live_speed", "LiveSpeedConfig"),
            ),
        ),
        StageEntry(name="report", config="ReportConfig", purpose="results and traces -> one HTML page, markdown, CSV"),
    )
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A read command line."""

    stage: StageEntry
    config: str | None
    run_dir: Path | None
    fresh: bool
    overrides: dict[str, str]
    help: bool
    own: dict[str, str | bool] = dataclasses.field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # before jax loads: torch shares the GPU
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _main(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _stop("error", error, 2)
    except BrokenPipeError:
        # The reader has gone (`| head`): nothing is left to say, and the last flush must not raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as a shell reports SIGPIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _stop("error", f"{error.filename or 'a file'}: the disk is full: make room and run it again", 2)
    except KeyboardInterrupt:
        return _stop("interrupted", "run the same command again to continue", 130)


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] == "adapters":
        return _adapters(arguments[1:])
    if arguments[0] == "convert":
        from xmsd_jax.pipeline.convert_command import command as convert

        return convert(*_split(arguments[1:]))
    if arguments[0] == "ask":
        from xmsd_jax.pipeline.ask_command import command as ask

        return ask(*_split(arguments[1:], {"check"}))
    if arguments[0] == "--version":
        print(f"xmsd {__version__}")
        return 0
    command = read_command(arguments)
    if command.help:
        print(_stage_help(command.stage))
        return 0
    return _run(command)


def read_command(arguments: Sequence[str]) -> Command:
    """The command line in words.

    Raises:
        UserError: an unknown stage, an option without value, two configs, or none where there is no default.
    """
    name, *rest = arguments
    if name not in STAGES:
        raise UserError(f"command line: {name}: no such stage; known: {', '.join(STAGES)}")
    stage = STAGES[name]
    alone = {option for option, (value, _) in stage.options.items() if value is None}
    positional, options, flags = _split(rest, alone)
    given: dict[str, str | bool] = {option: options.pop(option) for option in set(stage.options) & set(options)}
    given |= {option: True for option in alone & flags}
    if len(positional) > 1:
        raise UserError(
            f"command line: {positional[1]}: one CONFIG is taken; options are written --section.field value"
        )
    config = positional[0] if positional else stage.default
    if config is None and "help" not in flags:
        raise UserError(f"command line: {name}: needs a CONFIG: a YAML file or the name of a packaged one")
    run_dir = options.pop("run-dir", None)
    if run_dir == "":
        raise UserError("command line: --run-dir: is empty; name a folder")
    return Command(
        stage=stage,
        config=config,
        run_dir=Path(run_dir) if run_dir else None,
        fresh="fresh" in flags,
        overrides=options,
        help="help" in flags,
        own={option.replace("-", "_"): value for option, value in given.items()},
    )


def _split(arguments: Sequence[str], alone: Collection[str] = ()) -> tuple[list[str], dict[str, str], set[str]]:
    """Positional arguments, options with values, and flags."""
    positional, options, flags = [], {}, set()
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument in ("--fresh", "--help", "-h") or (not equals and argument.startswith("--") and name in alone):
            flags.add({"-h": "help"}.get(argument, name))
            continue
        if not argument.startswith("--"):
            positional.append(argument)
            continue
        value = value if equals else next(rest, "--")
        if value.startswith("--") or not name:
            raise UserError(f"command line: {argument}: has no value; write {argument} VALUE")
        if name in options:
            raise UserError(f"command line: {argument}: is given twice; keep one")
        options[name] = value
    return positional, options, flags


def _run(command: Command) -> int:
    from xmsd_jax import config as configs  # YAML: not for `--help`
    from xmsd_jax.runs import RunFailed

    path = configs.find(command.config or "", command.stage.name)
    module, config_class = stage_module(command.stage, configs.fields_of(path) if command.stage.variants else ())
    config = configs.load(config_class, path, command.overrides)
    run_dir = command.run_dir or default_run_dir(command.stage, path)
    try:
        module.run(config, run_dir, fresh=command.fresh, **command.own)
    except RunFailed as error:
        return _stop("failed", error, 1)
    return 0


def stage_module(stage: StageEntry, given: Collection[str] = ()) -> tuple[Any, type]:
    """The module of a stage and its config class, or those of the variant whose field a config gives."""
    own = ("", stage.name, stage.config)
    _, name, config = next((variant for variant in stage.variants if variant[0] in given), own)
    module = importlib.import_module(f"xmsd_jax.pipeline.{name}")
    return module, getattr(module, config)


def _adapters(arguments: Sequence[str]) -> int:
    """`xmsd adapters [--width 4096] [--json]`: the table of adapters."""
    rest = [argument for argument in arguments if argument != "--json"]
    positional, options, flags = _split(rest)
    if flags & {"help"}:
        print(
            "usage: xmsd adapters [--width 4096] [--json]\n\nkind, parameters, inputs, causal, offset of each adapter"
        )
        return 0
    width = options.pop("width", "4096")
    if positional or options or flags or not width.isdecimal():
        raise UserError(f"command line: adapters: takes --width N and --json, got {' '.join(arguments)}")
    from xmsd_jax.pipeline.adapters import listing

    print(listing(int(width), "--json" in arguments))
    return 0


def default_run_dir(stage: StageEntry, config: Path) -> Path:
    """`runs/<stage>` for the stage's own config, else `runs/<stage>/<config name>`."""
    is_own = stage.default is not None and config.as_posix().endswith(stage.default)
    return Path("runs") / stage.name if is_own else Path("runs") / stage.name / config.stem


def _stop(kind: str, reason: object, code: int) -> int:
    print(f"xmsd: {kind}: {' '.join(str(reason).split())}", file=sys.stderr)
    return code


def _overview() -> str:
    stages = "\n".join(f"  {stage.name:<10} {stage.purpose}" for stage in STAGES.values())
    return f"""usage: xmsd STAGE [CONFIG] [--section.field value ...] [--run-dir DIR] [--fresh]

stages:
{stages}

other:
  adapters   the architectures: parameters, inputs, causal, offset [--width 4096] [--json]
  ask        a question about a clip, the answer streamed with where its tokens came from
  convert    the study's .pt chunk folders to stores and back; stores to float8

CONFIG is a YAML file or the name of a packaged one (demo/small.yaml); `xmsd STAGE --help` lists its fields.
--section.field value   override a field of CONFIG
--run-dir DIR           where the run is written (default: runs/STAGE, or runs/STAGE/CONFIG)
--fresh                 do finished stages again
--version, --help"""


def _stage_help(stage: StageEntry) -> str:
    from xmsd_jax.describe import describe

    config = f"[CONFIG={stage.default}]" if stage.default else "CONFIG"
    fields = "\n".join(describe(stage_module(stage)[1]))
    for field, _, _ in stage.variants:
        variant = "\n".join(describe(stage_module(stage, {field})[1]))
        fields += f"\n\nor, in a config with {field}:\n{variant}"
    own = [(f"--{name}" + (f" {value}" if value else ""), told) for name, (value, told) in stage.options.items()]
    usage = f"usage: xmsd {stage.name} {config} [--section.field value ...] [--run-dir DIR] [--fresh]"
    usage += "".join(f" [{option}]" for option, _ in own)
    options = "".join(f"\n  {option:<22} {told}" for option, told in own)
    return f"{usage}\n\n{stage.purpose}\n{options and options + chr(10)}{fields}"


if __name__ == "__main__":
    sys.exit(main())
