"""`xmsd adapters`, and the numbers in the adapters' README."""

import json
import re
from pathlib import Path

import pytest

from xmsd_jax.adapters.kinds import CONTROLS, KINDS, parameters
from xmsd_jax.config import ConfigError
from xmsd_jax.pipeline.adapters import HEADINGS, listing

README = Path(__file__).resolve().parents[2] / "xmsd_jax" / "adapters" / "README.md"


def test_the_json_names_every_kind_and_control_with_its_size():
    found = json.loads(listing(64, True))
    assert found["width"] == 64
    sizes = {row["kind"]: row["parameters"] for row in found["adapters"]}
    assert sizes == {**{kind: parameters(kind, 64) for kind in KINDS}, **dict.fromkeys(CONTROLS, 0)}
    assert all(tuple(row) == HEADINGS for row in found["adapters"])


def test_the_json_has_the_facts_of_each():
    rows = {row["kind"]: row for row in json.loads(listing(64, True))["adapters"]}
    for name, kind in [*KINDS.items(), *CONTROLS.items()]:
        row = rows[name]
        assert (row["inputs"], row["causal"], row["offset"]) == (
            kind.facts.inputs,
            kind.facts.causal,
            kind.facts.offset,
        )


def test_the_text_shows_the_sizes_of_the_study():
    text = listing(4096, False)
    lines = [re.split(r"  +", line) for line in text.splitlines()]
    assert lines[0] == list(HEADINGS)
    assert ["L4", "100,714,497", "drafter", "no", "0", KINDS["L4"].purpose] in lines
    assert ["identity(target, 1)", "0", "target", "yes", "1", "control: the state as it is"] in lines
    assert "with 3, as the study trained it, 25,188,355 parameters" in text
    assert max(map(len, text.splitlines())) <= 120


def test_columns_are_aligned():
    table = listing(4096, False).split("\n\n")[0].splitlines()
    starts = [match.start() for match in re.finditer(r"(?<=  )-|^-", table[1])]
    assert len(starts) == len(HEADINGS)
    assert all(line[start - 1] == " " for line in table[1:] for start in starts[1:])


def test_a_width_that_does_not_fit_is_a_config_error():
    with pytest.raises(ConfigError, match="multiple of 16"):
        listing(100, False)


def test_the_readme_gives_the_counted_sizes():
    table = re.findall(r"^\| (\S+) \| ([\d,]+) \|", README.read_text(), re.MULTILINE)
    assert dict(table) == {kind: f"{parameters(kind, 4096):,}" for kind in KINDS}
    assert f"{parameters('L3', 4096, blocks=3):,}" in README.read_text()
