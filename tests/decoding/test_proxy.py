"""The study's model gives the study's numbers, and only the study's."""

from pathlib import Path

import pytest

from xmsd_jax import config
from xmsd_jax.config import ConfigError
from xmsd_jax.decoding.proxy import TwoPhase, TwoPhaseRow
from xmsd_jax.pipeline.proxy import ProxyConfig

CONFIG = Path(__file__).parents[2] / "configs" / "original" / "two_phase.yaml"
PRINTED = {"L1+L5F": 1.54, "L2+L5F": 1.56, "L3+L5F": 1.56, "L4+L5F": 1.55, "L5F-only": 1.45, "B1-only": 1.31}
PRINTED_ALPHA = {name: 0.51 if name == "B1-only" else 0.73 for name in PRINTED}


@pytest.fixture
def study() -> TwoPhase:
    found = config.load(ProxyConfig, CONFIG).original
    assert found is not None
    return found


def test_the_six_rows_of_the_study_come_out_to_two_decimals(study):
    assert {row.name: round(study.speedup(row), 2) for row in study.rows} == PRINTED
    assert study.baseline_ms == 1560
    assert "Expect: " + ", ".join(f"{s:.2f}" for s in PRINTED.values()) in CONFIG.read_text()


def test_every_alpha_rounds_to_what_the_study_printed(study):
    assert {row.name: round(row.alpha, 2) for row in study.rows} == PRINTED_ALPHA


def test_the_printed_alpha_itself_would_miss_two_rows(study):
    rounded = [TwoPhaseRow(name=row.name, free=row.free, alpha=PRINTED_ALPHA[row.name]) for row in study.rows]
    wrong = {row.name: round(study.speedup(row), 2) for row in rounded}
    assert {name: s for name, s in wrong.items() if s != PRINTED[name]} == {"L1+L5F": 1.53, "L2+L5F": 1.55}


def test_the_formula_by_hand():
    study = TwoPhase(
        prefill_ms=100, decode_ms=10, adapter_ms=2, tokens=20, rows=(TwoPhaseRow(name="x", free=4, alpha=1),)
    )  # fmt: skip
    row = study.rows[0]
    assert (study.baseline_ms, study.iterations(row), study.total_ms(row)) == (300, 8, 196)
    assert study.speedup(row) == pytest.approx(300 / 196)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prefill_ms": 0}, "positive"),
        ({"tokens": 0}, "positive"),
        ({"rows": ()}, "positive"),
        ({"rows": [{"name": "x", "free": 51, "alpha": 1}]}, "at most tokens = 50"),
        ({"rows": [{"name": "x", "alpha": -1}]}, "0 or more"),
    ],
)
def test_constants_that_make_no_sense_are_refused(study, change, told):
    with pytest.raises(ConfigError, match=told):
        config.load(TwoPhase, {**config.dump(study), **change})
