"""The disk cache of compiled kernels against a changed callee in another module, across processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FEE = "from btcbot.core.jit import kernel\n\n@kernel\ndef fee_nb(x):\n    return x * {rate}\n"
COST = "from btcbot.core.jit import kernel\nfrom btcbot.fee import fee_nb\n\n@kernel\ndef cost_nb(x):\n    return 100.0 + fee_nb(x)\n"


def cost(folder: Path) -> float:
    """Return `cost_nb(10.0)` of the package in `folder`, from a new process."""
    environment = {**os.environ, "BTCBOT_CACHE": str(folder / "cache"), "PYTHONPATH": str(folder)}
    code = "import sys; from btcbot.cost import cost_nb; print(cost_nb(10.0), sys.modules['btcbot'].__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    value, origin = done.stdout.split(maxsplit=1)
    assert Path(origin.strip()).is_relative_to(folder)
    return float(value)


@pytest.mark.jit
def test_a_changed_callee_changes_its_callers(tmp_path: Path) -> None:
    package = tmp_path / "btcbot"
    shutil.copytree(ROOT / "btcbot/core", package / "core")
    shutil.copy(ROOT / "btcbot/__init__.py", package)
    (package / "fee.py").write_text(FEE.format(rate=2.0))
    (package / "cost.py").write_text(COST)
    assert cost(tmp_path) == 120.0
    assert cost(tmp_path) == 120.0  # from the cache
    (package / "fee.py").write_text(FEE.format(rate=3.0))
    assert cost(tmp_path) == 130.0
    kernels = [path for path in (tmp_path / "cache/kernels").iterdir() if any(path.rglob("*.nbi"))]
    assert len(kernels) == 2  # the cache was in use, one folder for each version of the sources
