"""Rows of the ladder: one name each, and only drafters in the phase that they work in."""

import pytest

from xmsd_jax.config import ConfigError, load
from xmsd_jax.pipeline.rows import DRAFTERS, DraftRow, drafter_name, folder_name


@pytest.mark.parametrize(
    ("given", "name", "first"),
    [
        ({"drafter": "prompt-lookup"}, "prompt-lookup", None),
        ({"drafter": "n-gram", "prefill_mode": "wait"}, "n-gram (wait)", "n-gram"),
        ({"drafter": "template", "prefill_mode": "ride", "gamma": 3}, "template (ride)", "template"),
        ({"drafter": "n-gram", "gamma": "auto"}, "n-gram (auto)", None),
        ({"drafter": "n-gram", "prefill_mode": "ride", "gamma": "auto"}, "n-gram (ride, auto)", "n-gram"),
        ({"drafter": "L5F (synced)", "gamma": "auto"}, "L5F (synced, auto)", None),
        ({"drafter": "identity(target, 1)", "gamma": "auto"}, "identity(target, 1) (auto)", None),
        ({"prefill": "L3", "drafter": "B1", "prefill_mode": "ride", "gamma": "auto"}, "L3+B1 (auto)", "L3"),
        ({"prefill": "L2", "prefill_mode": "ride"}, "L2", "L2"),
        ({"drafter": "L5F (own)"}, "L5F (own)", None),
        ({"prefill": "L3", "drafter": "L5F (synced)", "prefill_mode": "wait"}, "L3+L5F (synced)", "L3"),
        ({"prefill": "template", "drafter": "B1", "prefill_mode": "ride"}, "template+B1", "template"),
        ({"prefill": "identity(drafter, 0)", "prefill_mode": "ride"}, "identity(drafter, 0)", "identity(drafter, 0)"),
    ],
)
def test_a_row_is_named_by_who_drafts_in_each_phase(given, name, first):
    row = load(DraftRow, given)
    assert (row.name, row.first) == (name, first)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"drafter": "L1"}, "drafter: 'L1' is none of prompt-lookup"),
        ({"drafter": "L5"}, "drafter: 'L5' is none of"),
        ({"drafter": "guess"}, "drafter: 'guess' is none of"),
        ({"prefill": "B1", "prefill_mode": "ride"}, "prefill: 'B1' is none of"),
        ({"prefill": "identity(target, 1)", "prefill_mode": "wait"}, r"prefill: 'identity\(target, 1\)' is none of"),
        ({"prefill_mode": "ride"}, "prefill_mode: ride does not go with drafter None"),
        ({"drafter": "B1", "prefill_mode": "wait"}, "prefill_mode: wait does not go with drafter B1"),
        ({"prefill": "L1"}, "prefill_mode: none does not go with drafter None and prefill L1"),
        ({"drafter": "n-gram", "gamma": 0}, "gamma: must be at least 1"),
        ({"drafter": "n-gram", "gamma": "most"}, "gamma"),
        (
            {"prefill": "L1", "prefill_mode": "ride", "gamma": "auto"},
            "gamma: auto chooses how much a drafter of phase 2",
        ),
        ({}, "a row needs a drafter"),
        ({"drafter": "n-gram", "prefill_mode": "fly"}, "prefill_mode"),
    ],
)
def test_a_drafter_outside_its_phase_is_refused(given, told):
    with pytest.raises(ConfigError, match=told):
        load(DraftRow, given)


def test_a_rows_longest_draft_is_its_own_or_the_ladders():
    assert [DraftRow(drafter="n-gram", gamma=gamma).longest(8) for gamma in (3, None, "auto")] == [3, 8, 8]


def test_the_pairing_is_part_of_a_name_only_where_both_pairings_exist():
    assert drafter_name("L5", "index") == "L5 (own)"
    assert drafter_name("L5F", "synced") == "L5F (synced)"
    assert drafter_name("L2", "index") == "L2"
    assert drafter_name("B1", None) == "B1"


def test_every_drafter_has_its_own_folder():
    folders = [folder_name(name) for name in DRAFTERS]
    assert len(set(folders)) == len(folders)
    assert all(folder.replace("_", "").isalnum() for folder in folders)
