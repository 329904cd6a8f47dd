"""The wheel carries what a run from any folder needs, and no more."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from xmsd_jax import __version__, cli

ROOT = Path(__file__).resolve().parents[1]
LARGEST_FILE = 16 * 1024**2


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built from the source tree with the build backend of the environment."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def shipped(folder: str, *suffixes: str) -> set[str]:
    """Files of the source tree below `folder`, relative to the root."""
    files = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in files if path.suffix in suffixes or not suffixes}


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["xmsd_jax", "torch_bridge"])
def test_the_wheel_has_every_source_and_data_file_of_the_packages(wheel, folder):
    assert shipped(folder) - set(wheel.namelist()) == set()


@pytest.mark.slow
def test_the_wheel_has_the_configs_inside_the_package(wheel):
    wanted = {f"xmsd_jax/{name}" for name in shipped("configs", ".yaml")}
    assert f"xmsd_jax/configs/{cli.STAGES['demo'].default}" in wanted
    assert wanted - set(wheel.namelist()) == set()


@pytest.mark.slow
def test_the_wheel_has_recording_and_weights_with_the_notice(wheel):
    names = wheel.namelist()
    assert any(name.startswith("xmsd_jax/data/recordings/") and name.endswith(".npz") for name in names)
    assert any(name.startswith("xmsd_jax/data/recordings/NOTICE") for name in names)
    assert any(name.startswith("torch_bridge/tiny/") and name.endswith(".safetensors") for name in names)


@pytest.mark.slow
def test_the_wheel_has_no_tests_runs_or_large_files(wheel):
    assert {name.split("/")[0] for name in wheel.namelist()} == {
        "xmsd_jax",
        "torch_bridge",
        f"xmsd-{__version__}.dist-info",
    }
    assert all(file.file_size <= LARGEST_FILE for file in wheel.infolist())


@pytest.mark.slow
def test_the_installed_wheel_finds_its_configs_without_the_checkout(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    code = "from xmsd_jax import config, cli; print(config.find('small', 'demo'))"
    command = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == str(tmp_path / "site" / "xmsd_jax" / "configs" / "demo" / "small.yaml"), done.stderr


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_said_once():
    assert project()["version"] == __version__


def test_every_pin_is_exact_and_torch_is_left_to_the_makefile():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 for line in lines)
    names = {line.split("==")[0] for line in lines}
    assert "torch" not in names
    wanted = {name_of(item) for item in [*project()["dependencies"], *extras("nf4", "dsec", "dev")]}
    assert wanted - names - {"torch", "pre-commit"} == set()


def extras(*names: str) -> list[str]:
    return [item for name in names for item in project()["optional-dependencies"][name]]


def name_of(requirement: str) -> str:
    return requirement.split(">=")[0].split("[")[0].replace("_", "-").lower()


def test_the_extras_of_the_contract_exist():
    assert set(project()["optional-dependencies"]) == {"cuda12", "cuda13", "nf4", "dsec", "dev"}
