"""`xmsd ask` and its Python form: what streams is the answer, and the answer is the target's own."""

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers

from torch_bridge.tiny.train import TrainConfig
from torch_bridge.verifier import TorchVerifier
from xmsd_jax import cli
from xmsd_jax import config as configs
from xmsd_jax.adapters.kinds import CONTROLS
from xmsd_jax.config import ConfigError
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.data.recording import davis_clips
from xmsd_jax.data.video import write_video
from xmsd_jax.decoding.plain import decode_plain
from xmsd_jax.decoding.ports import Prompt
from xmsd_jax.decoding.trace import Trace
from xmsd_jax.pipeline import ask, fitted
from xmsd_jax.pipeline.ask_command import NAMES, Printer, summary
from xmsd_jax.pipeline.pieces import Pieces
from xmsd_jax.pipeline.rows import DraftRow
from xmsd_jax.pipeline.trained import Trained

QUESTION = QUESTIONS[7]
ESCAPE = re.compile("\x1b\\[[0-9;]*m")


@pytest.fixture(scope="module")
def pair() -> ask.AskPair:
    return ask.load_pair()


@pytest.fixture(scope="module")
def drafter(pair) -> ask.AskDrafter:
    return ask.load_drafter(pair)


@pytest.fixture
def loaded(pair, monkeypatch) -> list[ask.AskConfig]:
    """The command line with the pair that is loaded already; the configs that it asked for."""
    asked = []
    monkeypatch.setattr(ask, "load_pair", lambda config: asked.append(config) or replace(pair, config=config))
    return asked


def plain(pair: ask.AskPair, question: str = QUESTION) -> Trace:
    """The target alone, by a verifier of its own."""
    index = QUESTIONS.index(question) if question in QUESTIONS else -1
    prompt = Prompt(clip=davis_clips()[0], question=question, question_index=index)
    return decode_plain(TorchVerifier(pair.live.target), prompt, pair.config.max_new_tokens)


@pytest.mark.parametrize("question", [QUESTION, "Is there a bus?"])
@pytest.mark.parametrize("mode", ["none", "ride", "wait"])
def test_the_stream_is_the_answer_and_the_answer_the_target_s_own(pair, question, mode):
    row = DraftRow(drafter="n-gram", prefill_mode=mode)
    drafter = ask.load_drafter(replace(pair, config=replace(pair.config, row=row)))
    heard = []
    told = ask.answer(pair, drafter, question, on_piece=lambda text, origin: heard.append((text, origin)))
    assert told.ids == plain(pair, question).ids
    assert "".join(text for text, _ in heard) == told.text == told.text.strip() != ""
    shown = [
        origin for token, origin in zip(told.ids, told.origins, strict=True) if token not in pair.live.verifier.eos_ids
    ]
    assert [origin for _, origin in heard] == shown
    assert set(shown) >= {"draft", "target"}
    assert told.decoded == told.trace.emitted
    assert told.tau == told.trace.emitted / len(told.trace.iterations) > 1


def test_a_listener_hears_each_portion_before_the_next_draft(pair, drafter):
    """Streaming, not printing at the end: at each draft what is known has been heard already."""
    heard, known = [], []

    class Watched:
        name = "watched"

        def propose(self, context, gamma):
            known.append((len(heard), len(context.ids)))
            return drafter.late.propose(context, gamma)

    watched = replace(drafter, late=Watched(), early=drafter.early)
    ask.answer(pair, watched, QUESTION, on_piece=lambda text, origin: heard.append(text))
    assert len(known) > 3
    assert all(pieces == ids for pieces, ids in known)


def test_a_row_that_drafts_before_the_first_token_only(pair):
    row = DraftRow(prefill="template", prefill_mode="ride")
    drafter = ask.load_drafter(replace(pair, config=replace(pair.config, row=row)))
    told = ask.answer(pair, drafter, QUESTION)
    assert (told.tau, told.ids) == (None, plain(pair).ids)
    assert told.decoded == told.origins.count("target") - 1
    assert "tau -" in summary(told, drafter.name)


def test_an_adapter_drafts_and_was_compiled_before_it_is_timed(pair, quick_compile, monkeypatch):
    """A control stands for trained adapters: it needs no file."""
    name = "identity(target, 1)"
    monkeypatch.setattr(pair.live, "_adapters", {name: Trained(name=name, adapter=CONTROLS[name](), pairing=None)})
    monkeypatch.setattr(ask.AskConfig, "__post_init__", lambda self: None)
    with_adapter = replace(pair, config=replace(pair.config, row=DraftRow(drafter=name, gamma=2)))
    passes = []
    step = pair.live.verifier.verify
    monkeypatch.setattr(
        pair.live.verifier, "verify", lambda ids, **given: passes.append(len(ids)) or step(ids, **given)
    )
    drafter = ask.load_drafter(with_adapter)
    assert len(passes) > 1
    assert ask.answer(with_adapter, drafter, QUESTION).ids == plain(pair).ids


def byte_fallback() -> Tokenizer:
    """As Llama's: a character that is no piece is spelled in bytes, and a blank stands before a word."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"Acafnd,."]
    model = models.BPE({word: at for at, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


@pytest.mark.parametrize("kind", ["byte-level", "byte fallback"])
def test_a_character_of_several_tokens_is_shown_once_it_is_whole(pair, kind):
    tokenizer, heard = byte_fallback() if kind == "byte fallback" else pair.live.target.tokenizer, []
    text = "A caf\u00e9, \u6f22\u5b57 and a \U0001f68c."
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    stream = Pieces(tokenizer, lambda piece, origin: heard.append((piece, origin)))
    for place, token in enumerate(ids):
        stream.add([token], "draft" if place % 2 else "target")
    stream.close()
    assert "".join(piece for piece, _ in heard) == text
    assert len(heard) < len(ids)
    assert not [piece for piece, _ in heard if "\ufffd" in piece]
    heard.clear()
    cut = Pieces(tokenizer, lambda piece, origin: heard.append((piece, origin)))
    cut.add(tokenizer.encode("\U0001f68c", add_special_tokens=False).ids[:-1], "draft")
    assert heard == []
    cut.close()
    assert set("".join(piece for piece, _ in heard)) == {"\ufffd"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("out", "environment", "coloured"),
    [
        (Terminal, {"TERM": "xterm"}, True),
        (io.StringIO, {"TERM": "xterm"}, False),
        (Terminal, {"TERM": "dumb"}, False),
        (Terminal, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal, {"TERM": "xterm", "NO_COLOR": ""}, True),
    ],
)
def test_colours_and_their_legend_are_for_terminals_that_want_them(monkeypatch, out, environment, coloured):
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    written = out()
    printer = Printer(written)
    printer.legend()
    for origin in NAMES:
        printer.piece(f"<{origin}>", origin)
    text = written.getvalue()
    assert ("\x1b" in text) is coloured
    assert len(set(ESCAPE.findall(text)) - {"\x1b[0m"}) == (3 if coloured else 0)
    assert all((name in text) is coloured for name in NAMES.values())
    assert ESCAPE.sub("", text).endswith("<prefill-draft><draft><target>")


def test_the_command_streams_plain_text_and_ends_with_the_figures(pair, drafter, loaded, capsys):
    assert cli.main(["ask", "ask/small.yaml", QUESTION, "--check", "--gamma", "5"]) == 0
    shown = capsys.readouterr().out
    told = ask.answer(replace(pair, config=loaded[0]), drafter, QUESTION)
    assert shown.startswith(told.text + "\n\n")
    assert "\x1b" not in shown
    assert "clip davis346_traffic_000, drafter n-gram (ride)" in shown
    assert re.search(r"decode: \d+ tokens in [\d.]+ s, \d+ tokens/s, tau \d+\.\d\d;", shown)
    assert f"{len(told.ids)} tokens: {told.trace.n_free} drafted before" in shown
    assert "check against the target alone: equal" in shown
    assert loaded == [replace(pair.config, gamma=5)]


def test_a_lone_question_is_asked_with_the_packaged_config(loaded, capsys):
    assert cli.main(["ask", QUESTION]) == 0
    assert loaded == [configs.load(ask.AskConfig, configs.find(ask.DEFAULT))]
    assert "check" not in capsys.readouterr().out


def test_an_answer_that_is_not_the_target_s_fails_the_check(loaded, capsys, monkeypatch):
    real = ask.decode_plain

    def other(*given, **named):
        own = real(*given, **named)
        return replace(own, ids=(own.ids[0], own.ids[1] + 1, *own.ids[2:]), margins=(1.0,) * len(own.ids))

    monkeypatch.setattr(ask, "decode_plain", other)
    assert cli.main(["ask", QUESTION, "--check"]) == 1
    shown = capsys.readouterr()
    assert "check against the target alone: DIFFERENT from token 1 on" in shown.out
    assert re.fullmatch("xmsd: failed: .*\n", shown.err)


def test_files_of_one_s_own_are_asked_about(pair, drafter, loaded, capsys, tmp_path):
    clip, recorded = davis_clips()[2], ask.answer(pair, drafter, QUESTION)
    video, events = tmp_path / "scene.mp4", tmp_path / "scene.npz"
    write_video(video, clip.video, fps=25)
    np.savez(events, **{name: getattr(clip.events, name) for name in "xypt"})
    assert cli.main(["ask", QUESTION, "--video", str(video), "--events", str(events), "--check"]) == 0
    shown = capsys.readouterr().out
    assert "clip scene, drafter n-gram (ride)" in shown
    assert shown.endswith("check against the target alone: equal\n")
    assert not shown.startswith(recorded.text)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "command line: ask: takes a CONFIG and one question in quotes, got nothing"),
        (["ask/small.yaml"], "command line: ask: takes a CONFIG and one question in quotes, got ask/small.yaml"),
        (["ask/small.yaml", "what", "is"], "command line: ask: takes a CONFIG and one question in quotes"),
        (["none.yaml", "what?"], "none.yaml: no such config file"),
        (["what?", "--fresh"], "command line: ask: does not take --fresh"),
        (["what?", "--gama", "3"], "command line: gama: unknown key; did you mean 'gamma'?"),
        (["what?", "--gamma", "0"], "gamma: must be at least 1, got 0"),
        ([" "], "question: is empty; ask something"),
        (["what?", "--video", "a.mp4"], "video: a.mp4: a clip is a video and its events; give both files"),
        (["what?", "--video", "a.mp4", "--events", "b.npz"], "video: a.mp4: no such file; check the path"),
        (["what?", "--pair.target", "there"], "fitted_on: n-gram must be fitted on answers of there"),
        (["what?", "--row", "{drafter: B1, prefill_mode: none}"], "fitted_on: B1 need the store they were trained on"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_loaded(loaded, capsys, arguments, problem):
    assert cli.main(["ask", *arguments]) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert re.fullmatch("xmsd: error: .*\n", error)
    assert loaded == []


def test_help_tells_the_usage_and_every_field(capsys):
    assert cli.main(["ask", "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: xmsd ask [CONFIG=ask/small.yaml]")
    assert all(f"--{name} " in shown for name in ("video", "check", "fitted_on", "row.drafter", "pair.device"))


def test_a_drafter_that_needs_no_fitting_goes_with_any_target():
    row = DraftRow(drafter="prompt-lookup")
    assert ask.AskConfig(row=row, pair=replace(ask.PairConfig(), target="there")).row == row
    with pytest.raises(ConfigError, match="template must be fitted"):
        ask.AskConfig(row=DraftRow(drafter="template"), pair=replace(ask.PairConfig(), target="there"))


def test_a_row_that_chooses_its_lengths_is_refused_where_no_times_are_measured():
    with pytest.raises(ConfigError, match=r"row: n-gram \(auto\): auto needs measured times"):
        ask.AskConfig(row=DraftRow(drafter="n-gram", gamma="auto"))


def test_the_taught_sentences_are_of_places_that_the_shipped_weights_were_trained_on():
    world = configs.load(TrainConfig, configs.find("tiny/pair.yaml")).world
    assert world.seed == fitted.TAUGHT_SEED
    assert world.sequences[fitted.TAUGHT_SPLIT] >= fitted.TAUGHT_PLACES


def test_the_three_lines_of_the_readme_answer():
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    [code] = [block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "pipeline.ask" in block]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["told"].text
    assert len(names["told"].origins) == len(names["told"].ids)
