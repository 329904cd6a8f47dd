"""The fake pair in place of model folders, for the stage `extract`."""

from typing import Any

import pytest

from tests.torch_bridge.fake_pair import fake_drafter, fake_target
from xmsd_jax.pipeline import extract


def load_fakes(patch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let the stage load the fake pair; returns what it is loaded with, a call an entry."""
    calls: list[dict[str, Any]] = []

    def load(**options):
        calls.append(options)
        return fake_target(), fake_drafter()

    patch.setattr(extract, "pair_options", lambda pair: {"dtype": pair.dtype})
    patch.setattr("torch_bridge.pair.load_pair", load)
    patch.setattr(extract, "pair_fingerprint", lambda pair: f"fingerprint of {pair.target}")
    return calls
