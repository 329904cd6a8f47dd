"""A strict world for every test: CPU, two virtual devices, no network, floating-point errors raise, no silent skip.

A test may be skipped for two reasons only: the folder of shared data is absent, or npm could not fetch the Llama
vocabulary. Those are counted in the summary; any other skip fails the session, so that a missing dependency cannot pass
for a green run.
"""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

SHARED_ABSENT = "shared data absent"
NOT_FETCHED = "Llama vocabulary not fetched by npm"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_PLATFORMS": "cpu",
    "TOKENIZERS_PARALLELISM": "false",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}
for _name, _value in ENVIRONMENT.items():  # before any test imports jax or transformers
    os.environ.setdefault(_name, _value)
hypothesis.settings.register_profile("xmsd", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("xmsd")


def shared_folder() -> Path | None:
    """The folder of shared data: XMSD_SHARED, else `shared` beside the checkout; None where there is none."""
    named = os.environ.get("XMSD_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    return folder if (folder / "data").is_dir() else None


@pytest.fixture(scope="session")
def needs_shared() -> Path:
    """The folder of shared data; a test that asks for it is skipped, and counted, where there is none."""
    folder = shared_folder()
    if folder is None:
        pytest.skip(SHARED_ABSENT)
    return folder


@pytest.fixture(autouse=True)
def strict_world() -> Iterator[None]:
    """The same random numbers in any order of tests; overflow, division by zero and NaN raise."""
    random.seed(0)
    np.random.seed(0)  # for libraries that draw from it
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        yield


@pytest.fixture
def quick_compile() -> Iterator[None]:
    """Compile without most optimisations: half of the time of small programs is XLA optimising them."""
    import jax  # here, not above: some tests must run without it

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_shared") and shared_folder() is None:
        pytest.skip(SHARED_ABSENT)


def skips(reporter) -> tuple[dict[str, list], list]:
    """The skipped reports of a session: by each reason that is allowed, and for anything else."""
    skipped = reporter.stats.get("skipped", []) if reporter else []
    allowed = {
        reason: [report for report in skipped if reason in str(report.longrepr)]
        for reason in (SHARED_ABSENT, NOT_FETCHED)
    }
    return allowed, [report for report in skipped if not any(report in reports for reports in allowed.values())]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    _, forbidden = skips(session.config.pluginmanager.get_plugin("terminalreporter"))
    if forbidden and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter) -> None:
    allowed, forbidden = skips(terminalreporter)
    for reason, reports in allowed.items():
        terminalreporter.write_line(f"skipped, {reason}: {len(reports)}")
    for report in forbidden:
        terminalreporter.write_line(f"ERROR: skipped for another reason, which fails the session: {report.nodeid}")
