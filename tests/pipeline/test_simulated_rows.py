"""Simulated curves by hand, as `proxy` predicts them, and how they are drawn."""

import numpy as np
import pytest

from tests.pipeline.test_proxy_stage import FREE, PARTS, RIGHT
from tests.small_store import write_store
from xmsd_jax.data.store import Store
from xmsd_jax.decoding.imposed import imposed_speedups
from xmsd_jax.decoding.text_anchors import FreePrefix
from xmsd_jax.metrics.acceptance import Anchors
from xmsd_jax.pipeline import proxy
from xmsd_jax.pipeline.cost_file import CostFile
from xmsd_jax.pipeline.judged import Judged, write_index, write_judged
from xmsd_jax.pipeline.predicted import write_costs
from xmsd_jax.pipeline.rows import DraftRow
from xmsd_jax.pipeline.simulate import SimulateConfig, simulated_rows
from xmsd_jax.pipeline.simulate_notices import Notices, ranges
from xmsd_jax.report.simulated import looks_of

WAIT = DraftRow(drafter="n-gram", prefill_mode="wait", gamma=2)
COSTS = CostFile(
    machine="a machine", baseline="target eager", vision=1.0, prefill=2.0, decode=10.0,
    verify={2: 20.0, 3: 30.0, 4: 40.0}, draft={"text": {1: 1.0, 2: 2.0}}, early={"text": 3.0}, host=0.5,
)  # fmt: skip


def judged_by_hand() -> dict[str, Judged]:
    right, lengths = np.array(RIGHT, np.int32), np.array([7, 8], np.int32)
    anchors = Anchors(right=right, gamma=2, target_len=lengths, free=np.zeros(2, np.int32))
    return {"n-gram": Judged(anchors=anchors, prefix=FreePrefix(free=np.array(FREE, np.int32), drafted=3))}


def by_hand(tmp_path, *rows: DraftRow, costs: CostFile = COSTS, **more):
    store = Store.open(write_store(tmp_path / "store" / "test", rows=2, prefix="test"))
    config = SimulateConfig(
        store=tmp_path / "store", costs=tmp_path / "c.yaml", gamma=2, prefill_draft_len=3, rows=rows, **more
    )
    notices = Notices(costs=costs, name="c.yaml", gamma=2, draft_len=3)
    return simulated_rows(config, costs, "test", store, judged_by_hand(), notices), store


def test_the_curve_is_that_of_the_walks_worked_out_by_hand(tmp_path):
    """In ms, plainly 63 + 73. Anchors at gamma 1: 0, 2, 3, 5 and 0, 1, 2, 3, 5; at gamma 2: 0, 3 and the same 5."""
    ((row,), _) = by_hand(tmp_path, DraftRow(drafter="n-gram"))
    one = (3 + 4 * 21.5) + (3 + 5 * 21.5)
    two = (3 + 2 * 32.5) + (3 + 5 * 32.5)
    assert row.settings["gammas"] == [0, 1, 2]
    assert row.settings["values"] == pytest.approx([1.0, 136 / one, 136 / two])
    assert row.settings["values"][0] == 1.0
    assert row.settings["taus"] == pytest.approx([1.0, 13 / 9, 13 / 7])
    assert (row.settings["best"], row.value, row.baseline, row.kind, row.n) == (0, 1.0, "target eager", "predicted", 2)


def test_the_numbers_are_those_of_proxy_given_the_same_parts(tmp_path):
    ((row,), store) = by_hand(tmp_path, WAIT)
    write_judged(tmp_path / "evaluation", "test", judged_by_hand())
    write_index(tmp_path / "evaluation", {"test": store.manifest}, ["n-gram"])
    write_costs(tmp_path / "costs.json", {"street": {WAIT.name: PARTS}}, {})
    measured = proxy.measured_rows(
        proxy.ProxyConfig(
            costs=tmp_path / "costs.json", clips="street", evaluation=tmp_path / "evaluation",
            store=tmp_path / "store", rows=(WAIT,),
        )
    )  # fmt: skip
    (same,) = [r for r in measured if r.metric == "speedup_by_gamma"]
    assert row.settings["values"] == pytest.approx(same.settings["values"])
    assert (row.settings["best"], row.baseline) == (same.settings["best"], same.baseline)
    assert (row.value, row.low, row.high) == pytest.approx((same.value, same.low, same.high))


def test_a_row_s_own_gamma_ends_its_curve(tmp_path):
    ((row,), _) = by_hand(tmp_path, DraftRow(drafter="n-gram", gamma=1))
    assert row.settings["gammas"] == [0, 1]


def test_imposed_acceptances_draft_for_nothing_or_at_the_costs_of_a_drafter(tmp_path):
    ((_, free), _) = by_hand(tmp_path, WAIT, imposed=(0.5,))
    ((_, paid), _) = by_hand(tmp_path / "paid", WAIT, imposed=(0.5,), imposed_like="n-gram")
    assert (free.row, free.kind, free.settings["costs_of"], paid.settings["costs_of"]) == (
        "imposed 0.5", "imposed", None, "n-gram"
    )  # fmt: skip
    for row, parts in ((free, COSTS.parts()), (paid, COSTS.parts(DraftRow(drafter="n-gram")))):
        wanted = imposed_speedups(parts, [7, 8], acceptance=0.5, gammas=[0, 1, 2])
        assert row.settings["values"] == pytest.approx(wanted)
        assert row.settings["values"][0] == 1.0
    assert paid.settings["values"][1] < free.settings["values"][1]


def test_rows_of_one_drafter_share_a_colour_and_differ_in_dash_and_marker():
    looks = looks_of(["n-gram (ride)", "n-gram", "B1", "L5 (own)", "L5 (synced)", "n-gram (wait)"])
    of = {name: look.key.split() for name, look in looks.items()}
    assert of["n-gram"][0] == of["n-gram (ride)"][0] == of["n-gram (wait)"][0]
    assert len({of[name][0] for name in ("n-gram", "B1", "L5 (own)")}) == 3
    assert of["L5 (own)"][0] == of["L5 (synced)"][0]
    assert len({(look.key, look.shape) for look in looks.values()}) == len(looks)


def test_lengths_are_told_as_ranges():
    assert ranges([1, 2, 3, 5, 7, 8]) == "1 to 3, 5, 7 to 8"
