"""`xmsd extract --shard i/n` and `--merge-check`: n processes or n machines leave the store of one."""

import shutil
from dataclasses import replace

import pytest

from tests.data.writing import contents
from tests.pipeline.fake_loading import load_fakes
from tests.torch_bridge.fake_pair import fake_clips
from xmsd_jax import cli
from xmsd_jax.config import UserError, to_yaml
from xmsd_jax.data.parts import Part, claim
from xmsd_jax.data.store import Store, StoreWriter
from xmsd_jax.pipeline import extract
from xmsd_jax.pipeline.extract import ExtractConfig


@pytest.fixture
def config(tmp_path):
    fake_clips(tmp_path / "clips", {"train": 7, "test": 2})
    return ExtractConfig(clips=tmp_path / "clips", questions=(0, 1, 2), max_new_tokens=6, batch=2, shard_rows=6)


@pytest.fixture(autouse=True)
def loaded(monkeypatch):
    """The fake pair in place of model folders; counts how often it is loaded."""
    return load_fakes(monkeypatch)


def splits_of(run_dir):
    return {split: contents(run_dir / "store" / split) for split in ("train", "test")}


@pytest.fixture
def whole(config, tmp_path):
    """What one process leaves."""
    extract.run(config, tmp_path / "whole")
    return splits_of(tmp_path / "whole")


def test_parts_in_one_folder_and_a_check_leave_the_bytes_of_one_process(config, tmp_path, whole, loaded, capsys):
    run_dir = tmp_path / "run"
    for number in (3, 1, 2):
        extract.run(config, run_dir, shard=f"{number}/3")
        assert not (run_dir / "store" / "train" / "texts.json").exists()
    loads = len(loaded)
    paths = extract.run(config, run_dir, merge_check=True)
    assert splits_of(run_dir) == whole
    assert Store.open(paths["train"]).rows == 21
    assert "train: 21 answers" in capsys.readouterr().out
    assert extract.run(config, run_dir) == paths  # the stage is done: reused
    extract.run(config, run_dir, merge_check=True)
    assert len(loaded) == loads


def test_copies_made_apart_are_taken_over(config, tmp_path, whole):
    for number in (1, 2):
        extract.run(config, tmp_path / f"machine{number}", shard=f"{number}/2")
    sources = f"{tmp_path / 'machine1'},{tmp_path / 'machine2'}"
    extract.run(config, tmp_path / "run", merge_check=True, merge_from=sources)
    assert splits_of(tmp_path / "run") == whole


def test_what_is_missing_is_listed_with_the_part_that_writes_it(config, tmp_path, capsys, whole):
    run_dir = tmp_path / "run"
    extract.run(config, run_dir, shard="1/2")
    with pytest.raises(UserError, match=r"not all rows are there; train: 2 of 4 shards are missing"):
        extract.run(config, run_dir, merge_check=True)
    told = capsys.readouterr().out
    assert "train: shard 1, rows 6..11, --shard 2/2" in told
    assert "train: shard 3, rows 18..20, --shard 2/2" in told
    assert "test: shard" not in told
    extract.run(config, run_dir, shard="2/2")
    extract.run(config, run_dir, merge_check=True)
    assert splits_of(run_dir) == whole


def test_a_finished_store_that_lost_a_shard_is_mended_by_its_part(config, tmp_path, whole):
    run_dir = tmp_path / "run"
    for options in ({"shard": "1/2"}, {"shard": "2/2"}, {"merge_check": True}):
        extract.run(config, run_dir, **options)
    (run_dir / "store" / "train" / "done" / "c" / "1").unlink()
    with pytest.raises(UserError, match="1 of 4 shards are missing"):
        extract.run(config, run_dir, merge_check=True)
    extract.run(config, run_dir, shard="2/2")
    extract.run(config, run_dir, merge_check=True)
    assert splits_of(run_dir) == whole


def test_a_plain_run_goes_on_where_a_part_stopped(config, tmp_path, whole):
    extract.run(config, tmp_path / "run", shard="2/3")
    extract.run(config, tmp_path / "run")
    assert splits_of(tmp_path / "run") == whole


def test_nothing_begun_is_said(config, tmp_path):
    with pytest.raises(UserError, match=r"no process has begun train, test"):
        extract.run(config, tmp_path / "run", merge_check=True)


def test_copies_of_another_run_are_refused(config, tmp_path):
    extract.run(config, tmp_path / "run", shard="1/2")
    other = ExtractConfig(clips=config.clips, questions=(5,), max_new_tokens=6)
    extract.run(other, tmp_path / "other", shard="2/2")
    with pytest.raises(UserError, match="made with other settings"):
        extract.run(config, tmp_path / "run", merge_check=True, merge_from=str(tmp_path / "other"))
    with pytest.raises(UserError, match="holds no store"):
        extract.run(config, tmp_path / "run", merge_check=True, merge_from=str(tmp_path / "nowhere"))


def test_a_row_that_is_there_twice_is_found(config, tmp_path):
    run_dir = tmp_path / "run"
    extract.run(config, run_dir, shard="1/2")
    extract.run(config, run_dir, shard="2/2")
    path = run_dir / "store" / "train"
    for field in ("clip", "question", "sequence"):  # the second shard becomes a copy of the first
        shutil.copyfile(path / field / "c" / "0", path / field / "c" / "1")
    with pytest.raises(UserError, match=r"6 rows are not about their own clip and question"):
        extract.run(config, run_dir, merge_check=True)
    assert not (path / "texts.json").exists()


def test_splits_of_different_runs_are_not_passed_off_as_one(config, tmp_path):
    extract.run(config, tmp_path / "run", shard="1/1")
    path = tmp_path / "run" / "store" / "test"
    manifest, names = Store.open(path).manifest, Store.open(path).names
    shutil.rmtree(path)
    StoreWriter.create_or_resume(path, replace(manifest, software={"torch": "1"}), names)
    with pytest.raises(UserError, match="software differ from the other splits"):
        extract.run(config, tmp_path / "run", merge_check=True)


def test_a_part_that_another_process_writes_is_refused(config, tmp_path):
    extract.run(config, tmp_path / "run", shard="1/2")
    with (
        claim(tmp_path / "run" / "store", Part(number=2, count=2)),
        pytest.raises(UserError, match="another process writes part 2/2"),
    ):
        extract.run(config, tmp_path / "run", shard="2/2")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"shard": "1/2", "fresh": True}, "each process would remove"),
        ({"shard": "1/2", "merge_check": True}, "leave out --shard"),
        ({"merge_from": "a"}, "needs --merge-check"),
        ({"shard": "3/2"}, "counted from 1/2 to 2/2"),
    ],
)
def test_options_that_contradict_each_other_are_refused_before_anything_is_read(config, tmp_path, options, problem):
    with pytest.raises(UserError, match=problem):
        extract.run(config, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_the_command_line_hands_the_options_on(config, tmp_path, capsys, whole):
    file, run_dir = tmp_path / "config.yaml", str(tmp_path / "run")
    file.write_text(to_yaml(config))
    command = ["extract", str(file), "--run-dir", run_dir]
    assert cli.main([*command, "--shard", "1/2"]) == 0
    assert cli.main([*command, "--merge-check"]) == 2
    assert "xmsd: error:" in capsys.readouterr().err
    assert cli.main([*command, "--shard=2/2"]) == 0
    assert cli.main([*command, "--merge-check"]) == 0
    assert splits_of(tmp_path / "run") == whole
    assert cli.main(["extract", "--help"]) == 0
    assert "i = 1..n" in capsys.readouterr().out
    assert cli.main(["train", "x.yaml", "--shard", "1/2"]) == 2


def test_float8_states_are_a_setting_of_extraction(config, tmp_path, whole):
    store = Store.open(extract.run(replace(config, states="float8"), tmp_path / "run")["train"])
    native = Store.open(tmp_path / "whole" / "store" / "train")
    assert store.manifest.states == "float8"
    states, rounded = native.read("target_hidden"), store.read("target_hidden")
    assert rounded.dtype == states.dtype
    assert 0 < abs(rounded - states).max() <= abs(states).max() / 16
    assert store.texts == native.texts
