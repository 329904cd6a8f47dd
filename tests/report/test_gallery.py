"""The files between benchmark and report: they reload equal, and a damaged one is a clear error."""

import json

import numpy as np
import pytest

from xmsd_jax.report.gallery import (
    Card,
    ReportError,
    StoredTrace,
    file_name,
    read_gallery,
    read_picture,
    read_traces,
    write_gallery,
    write_pictures,
    write_traces,
)

CARD = Card(
    clip="a clip",
    sequence="s",
    source="made up",
    question="What?",
    row="n-gram",
    tokens=("A", " car", ""),
    origins=("prefill-draft", "draft", "target"),
    reference="A car",
)
TRACE = {"ids": [5, 6], "origins": ["draft", "target"], "iterations": [], "seconds": {"decode": 0.5}, "stop": "eos"}


def stored(row="n-gram", **trace):
    return StoredTrace(row=row, clip="c", sequence="s", question="What?", trace={**TRACE, **trace})


def test_cards_reload_equal(tmp_path):
    write_gallery(tmp_path, [CARD])
    assert read_gallery(tmp_path) == [CARD]


def test_traces_reload_equal_and_apart_by_row(tmp_path):
    for row in ("n-gram", "n-gram + ride", "Lk/L5F"):
        write_traces(tmp_path, row, [stored(row), stored(row)])
    assert read_traces(tmp_path) == {row: [stored(row)] * 2 for row in ("n-gram", "n-gram + ride", "Lk/L5F")}
    assert {path.parent.name for path in tmp_path.rglob("*.json")} == {"traces"}


def test_a_run_without_gallery_or_traces_has_none(tmp_path):
    assert read_gallery(tmp_path) == []
    assert read_traces(tmp_path) == {}


def test_a_trace_of_another_row_is_refused(tmp_path):
    with pytest.raises(ReportError, match="do not belong"):
        write_traces(tmp_path, "template", [stored("n-gram")])


@pytest.mark.parametrize("origins", [["draft"], ["draft", "thin air"], []])
def test_each_token_has_one_known_origin(origins):
    with pytest.raises(ReportError, match="one origin"):
        stored(origins=origins)


def test_a_card_equals_its_reference_by_text():
    assert CARD.equal
    assert not Card(**{**vars(CARD), "reference": "A bus"}).equal


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"version": 99, "cards": []}', '{"version": 1}', '{"version": 1, "cards": [{"clip": "c"}]}',
     '{"version": 1, "cards": [7]}'],
)  # fmt: skip
def test_a_damaged_gallery_is_an_error_that_names_the_file(tmp_path, text):
    (tmp_path / "gallery.json").write_text(text)
    with pytest.raises(ReportError, match=r"gallery\.json"):
        read_gallery(tmp_path)


@pytest.mark.parametrize("content", [{"version": 1}, {"version": 1, "row": "r", "answers": [{"nothing": 1}]}])
def test_a_damaged_trace_file_is_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "r.json").write_text(json.dumps(content))
    with pytest.raises(ReportError, match=r"r\.json"):
        read_traces(tmp_path)


def test_names_become_distinct_file_names():
    names = ["n-gram", "n gram", "n/gram", "../gram", "τ", "?", "L1+L5F", "L1 L5F"]
    made = [file_name(name) for name in names]
    assert len(set(made)) == len(names)
    assert all(
        name and set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") for name in made
    )
    assert made[0] == "n-gram"


def test_pictures_lie_in_the_gallery_folder(tmp_path):
    frame = np.zeros((96, 96, 3), np.uint8)
    names = write_pictures(tmp_path, "clip 1", frame, frame)
    assert all(read_picture(tmp_path, name).startswith(b"\x89PNG") for name in names)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "absent.png", "text.png", ""])
def test_a_picture_from_elsewhere_is_refused(tmp_path, name):
    (tmp_path / "gallery").mkdir()
    (tmp_path / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "gallery" / "text.png").write_text("no picture")
    with pytest.raises(ReportError, match=r"must lie in|missing or no PNG"):
        read_picture(tmp_path, name)
