"""Run folder: numbers come back as written, a stage is done once per key, nothing is half-written."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from xmsd_jax import config
from xmsd_jax.config import UserError
from xmsd_jax.runs import (
    ResultsError,
    Row,
    Run,
    progress,
    provenance,
    read_results,
    stage_key,
    write_results,
    write_text,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    gamma: int = 5
    folder: Path = Path("here")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Twin:
    gamma: int = 5
    folder: Path = Path("here")


ROWS = [
    Row(row="n-gram", metric="tau", value=2.5, low=2.25, high=2.75, n=64, unit="tokens", settings={"gamma": 5}),
    Row(row="template", metric="cosine", value=None, kind="predicted"),
    Row(row="n-gram", metric="speed-up", value=1.5, unit="x", baseline="target eager"),
]


def test_results_come_back_as_written(tmp_path):
    path = write_results(tmp_path / "run", ROWS, {"python": "3.11"})
    assert read_results(path) == (ROWS, {"python": "3.11"})
    assert read_results(tmp_path / "run") == (ROWS, {"python": "3.11"})


def test_results_json_has_the_keys_of_the_contract(tmp_path):
    content = json.loads(write_results(tmp_path, ROWS[:1], {}).read_text())
    assert set(content) == {"rows", "provenance"}
    keys = {"row", "metric", "value", "low", "high", "n", "unit", "baseline", "kind", "settings"}
    assert set(content["rows"][0]) == keys


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"kind": "guessed"}, "kind of a row must be one of measured"),
        ({"value": float("nan")}, "must be finite"),
        ({"high": float("inf")}, "must be finite"),
        ({"value": "1"}, "must be finite"),
        ({"value": True}, "must be finite"),
        ({"row": ""}, "non-empty"),
    ],
)
def test_a_row_that_says_nothing_true_is_refused(tmp_path, change, problem):
    row = {"row": "n-gram", "metric": "tau", "value": 2.0} | change
    with pytest.raises(ValueError, match=problem):
        Row(**row)
    (tmp_path / "results.json").write_text(json.dumps({"rows": [row], "provenance": {}}))
    with pytest.raises(ResultsError, match=problem):
        read_results(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"rows": [{"row": "a"}], "provenance": {}}', '{"rows": []}', "\xff"]
)
def test_a_broken_results_file_is_a_user_error_that_names_it(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ResultsError, match=r"results\.json: is not a results"):
        read_results(path)


def test_missing_results_say_what_to_run(tmp_path):
    with pytest.raises(UserError, match="xmsd benchmark"):
        read_results(tmp_path)


def test_a_write_that_fails_leaves_the_old_content_and_no_part(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_text(path, "old")

    def broken(_):
        raise OSError("disk full")

    monkeypatch.setattr("xmsd_jax.runs.os.fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_an_open_run_reloads_to_the_same_config(tmp_path):
    run = Run.open(tmp_path / "run", Settings(gamma=7))
    assert config.load(Settings, run.path / "run.yaml") == Settings(gamma=7)
    written = json.loads((run.path / "provenance.json").read_text())
    assert {"date_utc", "command", "git", "python", "versions", "cpu", "cores", "platform", "gpus"} == set(written)


def test_a_run_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--run-dir"):
        Run.open(tmp_path / "file", Settings())


def test_metrics_are_appended_line_by_line_and_never_nan(tmp_path):
    run = Run.open(tmp_path, Settings())
    run.log(step=1, loss=0.5)
    run.log(step=2, loss=None)
    with pytest.raises(ValueError, match="JSON"):
        run.log(step=3, loss=float("nan"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]


def test_a_stage_key_changes_with_config_type_and_inputs_only():
    key = stage_key(Settings(), "abc")
    assert key == stage_key(Settings(), "abc")
    others = [stage_key(Settings(gamma=6), "abc"), stage_key(Twin(), "abc"), stage_key(Settings(), "abd")]
    assert len({key, stage_key(Settings()), stage_key(Settings(), "a", "bc"), *others}) == 6


def work(run: Run, key: str, fresh: bool = False, fail: bool = False) -> tuple[bool, list[str]]:
    """Do a stage that leaves a file; whether it was reused, and the files it found."""
    with run.stage("clips", key, fresh) as stage:
        found = sorted(p.name for p in stage.path.iterdir())
        if not stage.reused:
            (stage.path / "made").write_text(key)
        if fail:
            raise RuntimeError("killed")
    return stage.reused, found


def test_a_finished_stage_is_reused_and_done_again_for_another_key_or_fresh(tmp_path, capsys):
    run = Run.open(tmp_path, Settings())
    assert work(run, "k1") == (False, ["stage.json"])
    assert "clips: 0.0 s" in capsys.readouterr().out
    assert work(run, "k1") == (True, ["made", "stage.json"])
    assert "clips: reused" in capsys.readouterr().out
    assert work(run, "k2") == (False, ["stage.json"])
    assert work(run, "k2", fresh=True) == (False, ["stage.json"])


def test_a_stage_that_was_cut_off_continues_in_its_folder(tmp_path):
    run = Run.open(tmp_path, Settings())
    with pytest.raises(RuntimeError, match="killed"):
        work(run, "k1", fail=True)
    assert work(run, "k1") == (False, ["made", "stage.json"])
    assert work(run, "k1")[0] is True


def test_a_folder_that_no_stage_made_is_not_removed(tmp_path):
    run = Run.open(tmp_path, Settings())
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "mine").write_text("x")
    assert work(run, "k1", fresh=True) == (False, ["mine", "stage.json"])


@pytest.mark.parametrize("marker", ["", "{", "[]", '{"key": "k1"}', '{"key": "k1", "done": "yes"}'])
def test_a_broken_marker_means_not_done(tmp_path, marker):
    run = Run.open(tmp_path, Settings())
    write_text(tmp_path / "clips" / "stage.json", marker)
    assert work(run, "k1")[0] is False


def test_provenance_is_json_and_imports_no_framework():
    code = "import sys, json; from xmsd_jax.runs import provenance; p = provenance(['xmsd', 'demo']); "
    code += "print(json.dumps([p, [m for m in ('jax', 'torch', 'numpy') if m in sys.modules]]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    written, loaded = json.loads(done.stdout)
    assert loaded == []
    assert written["command"] == ["xmsd", "demo"]
    assert written["versions"]["torch"]
    assert written["cores"] >= 1


def test_provenance_names_the_program_not_where_it_lies(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/xmsd", "demo"])
    assert provenance()["command"] == ["xmsd", "demo"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_passes_every_item_on(monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    assert list(progress(range(25), total=25, label="clips")) == list(range(25))
    assert list(progress(iter("abc"), label="letters")) == ["a", "b", "c"]
    assert list(progress([], label="nothing")) == []


def test_progress_without_a_terminal_prints_about_ten_lines(capsys):
    list(progress(range(1000), label="clips"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("clips: 1000/1000")
