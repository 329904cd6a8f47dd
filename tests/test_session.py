"""The test session itself: a test that was skipped for a missing dependency cannot pass for a green run."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
PASSING = "def test_passes():\n    assert True\n"


def session(tmp_path: Path, test: str, *options: str, shared: Path | None = None) -> tuple[int, str]:
    """Exit code and output of a session with this project's conftest and one test file."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "tests" / "test_it.py").write_text(PASSING + test)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = needs_shared: reads shared data\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, str(tmp_path / "tests")]
    environment = {"XMSD_SHARED": str(shared or tmp_path / "none"), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "test",
    [
        "import pytest\n@pytest.mark.skip(reason='no GPU')\ndef test_a():\n    assert True\n",
        "import pytest\ndef test_a():\n    pytest.importorskip('no_such_module')\n",
        "import pytest\npytest.importorskip('no_such_module')\n",
        "import pytest\n@pytest.mark.skipif(True, reason='slow here')\ndef test_a():\n    assert True\n",
    ],
)
@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["one process", "workers"])
def test_any_other_skip_fails_the_session(tmp_path, test, options):
    code, output = session(tmp_path, test, *options)
    assert code == 1
    assert "ERROR: skipped for another reason" in output


@pytest.mark.parametrize(
    "test",
    [
        "import pytest\n@pytest.mark.needs_shared\ndef test_a():\n    assert True\n",
        "def test_a(needs_shared):\n    assert True\n",
    ],
)
def test_absent_shared_data_is_counted_and_allowed(tmp_path, test):
    code, output = session(tmp_path, test)
    assert code == 0
    assert "skipped, shared data absent: 1" in output
    assert "1 passed, 1 skipped in" in output


def test_a_vocabulary_that_npm_cannot_fetch_is_counted_and_allowed(tmp_path):
    test = "import pytest\nfrom conftest import NOT_FETCHED\ndef test_a():\n    pytest.skip(f'{NOT_FETCHED}: no npm')\n"
    code, output = session(tmp_path, test)
    assert code == 0
    assert "skipped, Llama vocabulary not fetched by npm: 1" in output
    assert "skipped, shared data absent: 0" in output


def test_shared_data_that_is_there_is_used(tmp_path):
    (tmp_path / "there" / "data").mkdir(parents=True)
    test = f"def test_a(needs_shared):\n    assert str(needs_shared) == {str(tmp_path / 'there')!r}\n"
    code, output = session(tmp_path, test, shared=tmp_path / "there")
    assert code == 0
    assert "skipped, shared data absent: 0" in output


@pytest.mark.parametrize("body", ["np.float32(1) / np.float32(0)", "np.exp(np.float64(1e4))", "np.log(np.float64(-1))"])
def test_a_floating_point_error_fails_the_test(tmp_path, body):
    code, output = session(tmp_path, f"import numpy as np\ndef test_a():\n    {body}\n")
    assert code == 1
    assert "FloatingPointError" in output
