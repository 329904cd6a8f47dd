"""The command line of `xmsd ask`: the answer streams to the terminal; nothing heavy is imported for its usage."""

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from xmsd_jax.config import UserError, find, load

if TYPE_CHECKING:
    from xmsd_jax.pipeline.ask import Answered

USAGE = """usage: xmsd ask [CONFIG=ask/small.yaml] [--video FILE --events FILE] [--check] [--field value ...] "question"

the answer of the target, streamed as it is verified; on a terminal tokens are coloured by who drafted them

  --video FILE    an .mp4; with --events FILE (EventGPT's .npy, or .npz of x, y, p, t) the clip that is asked about
                  (without both: the shipped DAVIS346 recording)
  --check         also decode with the target alone and compare; exit code 1 if the answers differ
"""
COLOURS = {"prefill-draft": "36", "draft": "32", "target": "33"}
NAMES = {"prefill-draft": "drafted before the first token", "draft": "drafted, accepted", "target": "the target's own"}


def command(positional: Sequence[str], options: Mapping[str, str], flags: Collection[str]) -> int:
    """Run it; returns the exit code: 1 if --check finds another answer.

    Raises:
        UserError: arguments that it does not take, or what loading and answering raise.
    """
    if "help" in flags:
        print(_help())
        return 0
    config, question = _asked(positional)
    if extra := set(flags) - {"check"}:
        raise UserError(f"command line: ask: does not take --{', --'.join(sorted(extra))}; see `xmsd ask --help`")
    files = {name: options[name] for name in ("video", "events") if name in options}
    overrides = {name: value for name, value in options.items() if name not in files}
    return _answer(config, overrides, question, files, "check" in flags)


def _asked(positional: Sequence[str]) -> tuple[str, str]:
    """The config and the question; a lone argument is the question, unless it names a YAML file."""
    default = "ask/small.yaml"
    if len(positional) == 1 and not positional[0].endswith((".yaml", ".yml")):
        positional = [default, *positional]
    if len(positional) != 2:
        given = " ".join(positional) or "nothing"
        raise UserError(
            f'command line: ask: takes a CONFIG and one question in quotes, got {given}; write xmsd ask {default} "..."'
        )
    return positional[0], positional[1]


def _answer(config: str, overrides: Mapping[str, str], question: str, files: Mapping[str, str], check: bool) -> int:
    from xmsd_jax.pipeline import ask

    settings = load(ask.AskConfig, find(config, "ask"), overrides)
    ask.check_asked(question, **files)  # before seconds of loading
    pair = ask.load_pair(settings)
    drafter = ask.load_drafter(pair)
    printer = Printer(sys.stdout)
    printer.legend()
    told = ask.answer(pair, drafter, question, on_piece=printer.piece, check=check, **files)
    print(f"\n\n{summary(told, drafter.name)}")
    if told.certificate is None or told.certificate.status == "passed":
        return 0
    print("xmsd: failed: the answer is not the target's own; report it with the command", file=sys.stderr)
    return 1


class Printer:
    """Writes pieces as they come; coloured on a terminal that takes colours, else as plain text."""

    def __init__(self, out: TextIO) -> None:
        """Write to `out`; a set NO_COLOR (https://no-color.org) and TERM=dumb keep it plain."""
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        self._out, self._coloured = out, out.isatty() and not plain

    def legend(self) -> None:
        """Say what the colours mean, where there are any."""
        if self._coloured:
            self._out.write("  ".join(self._in_colour(name, origin) for origin, name in NAMES.items()) + "\n\n")

    def piece(self, text: str, origin: str) -> None:
        """Write one piece, at once."""
        self._out.write(self._in_colour(text, origin) if self._coloured else text)
        self._out.flush()

    def _in_colour(self, text: str, origin: str) -> str:
        return f"\x1b[{COLOURS[origin]}m{text}\x1b[0m"


def summary(told: "Answered", drafter: str) -> str:
    """What the answer took, in a few lines."""
    seconds, count = told.trace.seconds, told.origins.count
    rate = "-" if told.tokens_per_second is None else f"{told.tokens_per_second:.0f} tokens/s"
    tau = "-" if told.tau is None else f"{told.tau:.2f}"
    before = seconds["vision"] + seconds["prefill"] + seconds["first"]
    lines = [
        f"clip {told.clip}, drafter {drafter}",
        f"{len(told.ids)} tokens: {count('prefill-draft')} drafted before the first token, {count('draft')} drafted, "
        f"{count('target')} the target's own; {told.drafted_share:.0%} drafted",
        f"decode: {told.decoded} tokens in {seconds['decode']:.3f} s, {rate}, tau {tau}; before it vision and prefill, "
        f"{before:.3f} s",
    ]
    if told.certificate is not None:
        verdict = "a rounding tie" if told.certificate.ties else "equal"
        if told.certificate.divergences:
            verdict = f"DIFFERENT from token {told.certificate.divergences[0].position} on"
        lines.append(f"check against the target alone: {verdict}")
    return "\n".join(lines)


def _help() -> str:
    from xmsd_jax.describe import describe
    from xmsd_jax.pipeline.ask import AskConfig

    return USAGE + "\n".join(describe(AskConfig))
