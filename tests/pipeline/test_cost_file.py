"""Cost files: strict, in milliseconds, and what a row lacks is named as the entry to add."""

from pathlib import Path

import pytest

from xmsd_jax.config import ConfigError, dump, load, packaged_configs
from xmsd_jax.decoding.cost import Parts
from xmsd_jax.pipeline.cost_file import CostFile, LaneCosts, read_cost_file
from xmsd_jax.pipeline.rows import DraftRow

PACKAGED = sorted((packaged_configs() / "costs").glob("*.yaml"))
BARE = {"machine": "m", "baseline": "target compiled", "prefill": 60, "decode": 5, "verify": {1: 5, 6: 6.5}}
FULL = CostFile(
    machine="m", baseline="target eager", vision=1.0, prefill=2.0, decode=10.0, verify={2: 20.0, 4: 40.0},
    draft={"text": {1: 0.5}, "n-gram": {1: 1.0, 2: 2.0}, "adapter": {1: 3.0, 4: 6.0}}, sync={"adapter": 7.0},
    early={"text": 3.0, "L1": 8.0}, host=0.5, prefill_per_extra=0.25,
    drafter=LaneCosts(vision=4.0, prefill=5.0, step=6.0),
)  # fmt: skip


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "costs.yaml").write_text(text)
    return tmp_path / "costs.yaml"


def seconds(**own) -> Parts:
    shared = {"vision": 0.001, "prefill": 0.002, "decode_step": 0.01, "verify": {2: 0.02, 4: 0.04}}
    return Parts(**shared, host=0.0005, prefill_per_extra=0.00025, **own)


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_every_packaged_cost_file_loads_reloads_equal_and_says_where_it_is_from(path):
    costs = read_cost_file(path, 5)
    assert load(CostFile, dump(costs)) == costs
    assert read_cost_file(Path(f"costs/{path.name}"), 1) == costs
    header = path.read_text().split("machine:")[0]
    assert "Interpolated by the cost model: " in header
    assert "Not measured, and so not here: " in header


@pytest.mark.parametrize(
    ("row", "own"),
    [
        (DraftRow(drafter="n-gram"), {"draft": {1: 0.001, 2: 0.002}}),
        (DraftRow(drafter="template", prefill_mode="ride"), {"draft": {1: 0.0005}, "adapter": 0.003}),
        (DraftRow(drafter="B1"), {"draft": {1: 0.003, 4: 0.006}}),
        (
            DraftRow(drafter="L5 (synced)"),
            {"draft": {1: 0.003, 4: 0.006}, "sync": 0.007, "drafter_vision": 0.004, "drafter_prefill": 0.005},
        ),
        (
            DraftRow(drafter="L5F (own)"),
            {"draft": {1: 0.003, 4: 0.006}, "drafter_vision": 0.004, "drafter_prefill": 0.005, "drafter_step": 0.006},
        ),
        (
            DraftRow(prefill="L1", drafter="n-gram", prefill_mode="ride"),
            {"draft": {1: 0.001, 2: 0.002}, "adapter": 0.008, "drafter_vision": 0.004, "drafter_prefill": 0.005,
             "drafter_step": 0.006},
        ),
    ],
    ids=lambda value: value.name if isinstance(value, DraftRow) else "",
)  # fmt: skip
def test_a_row_pays_its_own_parts_in_seconds_with_those_of_its_kind_where_it_has_none(row, own):
    found, wanted = FULL.parts(row).to_json(), seconds(**own).to_json()
    assert FULL.missing(row, 4, 3) == []
    for name, value in wanted.items():
        assert found[name] == (value if isinstance(value, str) else pytest.approx(value)), name


@pytest.mark.parametrize(
    ("row", "lacking"),
    [
        (DraftRow(drafter="n-gram"), ["draft.n-gram (or draft.text)"]),
        (
            DraftRow(drafter="template", prefill_mode="ride"),
            ["draft.template (or draft.text)", "early.template (or early.text)", "prefill_per_extra"],
        ),
        (
            DraftRow(drafter="template", prefill_mode="wait"),
            ["draft.template (or draft.text)", "early.template (or early.text)", "verify at M = 12"],
        ),
        (DraftRow(drafter="L5 (own)"), ["draft.L5 (own) (or draft.adapter)", "drafter (vision, prefill, step)"]),
        (
            DraftRow(drafter="L5 (synced)"),
            ["draft.L5 (synced) (or draft.adapter)", "sync.L5 (synced) (or sync.adapter)",
             "drafter (vision, prefill, step)"],
        ),
        (DraftRow(drafter="identity(target, 1)"), ["draft.identity(target, 1) (or draft.control)"]),
    ],
    ids=lambda value: value.name if isinstance(value, DraftRow) else "",
)  # fmt: skip
def test_what_a_row_lacks_is_named_as_the_entry_to_add(row, lacking):
    assert load(CostFile, BARE).missing(row, 5, 12) == lacking


def test_a_draft_is_predicted_between_measured_lengths_and_never_outside_them():
    row = DraftRow(drafter="B1")
    costs = load(CostFile, {**BARE, "draft": {"B1": {2: 1.0, 4: 1.0}}})
    assert costs.gammas(row, 5) == [0, 2, 3, 4]
    assert costs.missing(row, 1, 12) == ["draft.B1 (or draft.adapter) at a gamma of 1 to 1"]
    assert load(CostFile, {**BARE, "draft": {"B1": {5: 1.06}}}).gammas(row, 5) == [0, 5]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ("verfy: {1: 5}", "verfy: unknown key; did you mean 'verify'?"),
        ("drafter: {vision: 1, prefill: 2}", "drafter.step: missing"),
        ("draft: {ngram: {1: 0.1}}", "draft.ngram: is no drafter and no kind of drafters; did you mean 'n-gram'?"),
        ("early: {zzz: 1}", "early.zzz: is no drafter and no kind of drafters; known: text, control, adapter"),
        ("draft: {n-gram: {0: 0.1}}", "draft.n-gram: a length must be at least 1, got 0"),
        ("draft: {n-gram: {'1': 0.1}}", "draft.n-gram.1: a key must be a whole number"),
        ("sync: {adapter: -1}", "sync.adapter: must be milliseconds >= 0, got -1.0"),
        ("host: slow", "host: expected"),
        ("vision: .nan", "vision: expected"),
    ],
)
def test_a_file_that_does_not_fit_is_told_by_its_field(tmp_path, changes, told):
    base = "machine: m\nbaseline: b\nprefill: 60\ndecode: 5\nverify: {1: 5, 6: 6.5}\n"
    path = write(tmp_path, base + changes)
    with pytest.raises(ConfigError) as caught:
        read_cost_file(path, 5)
    assert str(caught.value).startswith(f"{path}: {told}")


@pytest.mark.parametrize(
    ("verify", "gamma", "told"),
    [
        ("{1: 5, 6: 6.5}", 8, "a pass over 9 tokens was not measured (measured: 1, 6); add it, or set gamma to 5"),
        ("{4: 5, 9: 6}", 8, "a pass over 2 tokens was not measured (measured: 4, 9); add it"),
        ("{}", 8, "a pass over 2 tokens was not measured (measured: none); add it"),
    ],
)
def test_a_pass_length_that_no_prediction_can_do_without_is_asked_for(tmp_path, verify, gamma, told):
    path = write(tmp_path, f"machine: m\nbaseline: b\nprefill: 60\ndecode: 5\nverify: {verify}\n")
    with pytest.raises(ConfigError) as caught:
        read_cost_file(path, gamma)
    assert str(caught.value) == f"{path}: verify: {told}"


def test_a_plain_step_for_nothing_is_refused():
    with pytest.raises(ConfigError, match="decode: must be above 0"):
        load(CostFile, {**BARE, "decode": 0})


def test_parts_that_count_nothing_are_told():
    assert load(CostFile, BARE).unmeasured() == ["vision", "host"]
    assert FULL.unmeasured() == []
