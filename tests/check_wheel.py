"""Build the sdist and the wheel, install the wheel with the base lock in an empty environment, and use it from there.

Run by name (`pytest tests/check_wheel.py`), as the last step of `make test`: it downloads the base set.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"numpy", "numba", "pandas", "pyarrow", "duckdb", "sklearn", "tensorflow", "matplotlib"}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def run(command: Sequence[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `command` in `folder`, away from the repository and from what this process was told about it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COVERAGE", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the sdist, and the wheel made from it."""
    folder = tmp_path_factory.mktemp("build")
    # From a copy: a build leaves its metadata beside setup.py, where Python would find it before the installed one's.
    made = shutil.ignore_patterns(".*", "runs", "build", "dist", "_proc", "_docs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "source", ignore=made)
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source"], folder)
    return folder / "dist"


@pytest.fixture(scope="session")
def scripts(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of commands of an empty environment in which only the wheel and the base lock are installed."""
    folder = tmp_path_factory.mktemp("empty")
    run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], folder)
    install: list[str | Path] = [*PIP, "--python", folder / "venv/bin/python", "install"]
    run([*install, "--no-compile", "--require-hashes", "--requirement", ROOT / "requirements/base.txt"], folder)
    run([*install, "--no-deps", "--no-index", next(built.glob("*.whl"))], folder)
    return folder / "venv/bin"


def test_archives_hold_what_they_should(built: Path) -> None:
    names = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    assert {name.split("/")[0].removesuffix(".dist-info").split("-")[0] for name in names} == {"btcbot", "mt5_server"}
    jobs = {path.name for path in (ROOT / "papermill_jobs").glob("*.ipynb")}
    assert {Path(name).name for name in names if name.startswith("btcbot/papermill_jobs/")} == jobs
    assert {"btcbot/py.typed", "mt5_server/py.typed"} <= set(names)
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= inside


def test_requirements_are_complete(scripts: Path, tmp_path: Path) -> None:
    run([*PIP, "--python", scripts / "python", "check"], tmp_path)


def test_import_loads_nothing_heavy(scripts: Path, tmp_path: Path) -> None:
    code = "import sys, btcbot; print(btcbot.__version__, btcbot.__file__, *{name.split('.')[0] for name in sys.modules}, sep='\\n')"
    number, origin, *loaded = run([scripts / "python", "-c", code], tmp_path).stdout.splitlines()
    assert Path(origin).is_relative_to(scripts.parent)
    assert next((scripts.parent / "lib").glob(f"python*/site-packages/btcbot-{number}.dist-info"))
    assert HEAVY.isdisjoint(loaded)


@pytest.mark.parametrize("command", ["btcbot --help", "btcbot --version", "mt5-server --help"])
def test_commands_answer(scripts: Path, tmp_path: Path, command: str) -> None:
    name, option = command.split()
    done = run([scripts / "python", "-X", "importtime", scripts / name, option], tmp_path)
    assert done.stdout.strip()
    if name == "btcbot":
        assert HEAVY.isdisjoint({line.rpartition("|")[2].strip() for line in done.stderr.splitlines()})


def test_jobs_travel_with_the_package(scripts: Path, tmp_path: Path) -> None:
    code = "from importlib.resources import files; print(*sorted(p.name for p in files('btcbot').joinpath('papermill_jobs').iterdir()))"
    assert "live.ipynb" in run([scripts / "python", "-c", code], tmp_path).stdout.split()
