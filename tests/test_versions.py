"""The pipeline in dvc.yaml on the sample: it runs without a network, and twice it makes the same files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def repro(folder: Path) -> dict[str, Any]:
    """Run the pipeline in a copy of the project's settings, and return its lock."""
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n" + (ROOT / ".dvc/config").read_text().replace("[core]\n", ""))
    home = folder / "home"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "BTCBOT_HOME": str(home), "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(home)}
    dvc = [sys.executable, "-m", "dvc"]
    done = subprocess.run([*dvc, "repro"], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    again = subprocess.run([*dvc, "repro"], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert "Data and pipelines are up to date" in again.stdout + again.stderr
    lock: dict[str, Any] = yaml.safe_load((folder / "dvc.lock").read_text())
    return lock


@pytest.mark.jit
def test_twice_the_same_hashes(tmp_path: Path) -> None:
    locks = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        locks.append(repro(tmp_path / name))
    assert locks[0] == locks[1]
    assert list(locks[0]["stages"]) == ["ingest", "clean"]
    assert json.loads((tmp_path / "one/data/clean.json").read_text())["kept"] > 100_000
