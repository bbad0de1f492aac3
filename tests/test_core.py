"""What a notebook cell cannot hold of `core` and of the package's root: what an import loads, and processes that are killed."""

import ast
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import btcbot
from btcbot.core.config import load_settings
from btcbot.core.metrics import RISK_LIMITS, RISK_RULES
from btcbot.core.process import Child

HEAVY = {"numpy", "numba", "pandas", "pyarrow", "duckdb", "sklearn", "matplotlib", "tensorflow", "pydantic", "requests"}


def python(code: str, **environment: str) -> str:
    """Return what a new process prints that runs `code`."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# The root of the package


@pytest.mark.parametrize(
    "module", ["btcbot", "btcbot.cli", "btcbot.core.config", "btcbot.core.log", "btcbot.core.metrics", "btcbot.core.process"]
)
def test_an_import_loads_nothing_heavy(module: str) -> None:
    loaded = python(f"import {module}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})").split()
    assert HEAVY.isdisjoint(loaded)


@pytest.mark.parametrize("name", sorted(set(btcbot.__all__) - {"__version__"}))
def test_a_public_name_is_what_its_module_defines(name: str) -> None:
    assert getattr(btcbot, name) is getattr(importlib.import_module(btcbot._HOMES[name]), name)


def test_a_public_name_is_loaded_on_first_use() -> None:
    code = "import btcbot, sys; print('numpy' in sys.modules, 'Store' in vars(btcbot), 'Store' in dir(btcbot)); "
    code += "btcbot.Store; print('numpy' in sys.modules, 'Store' in vars(btcbot))"
    assert python(code).split() == ["False", "False", "True", "True", "True"]


def test_the_lists_of_public_names_agree() -> None:
    tree = ast.parse(Path(btcbot.__file__).read_text(encoding="utf-8"))
    typed = {name.asname: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names if name.asname}
    assert typed == btcbot._HOMES
    assert sorted(btcbot.__all__) == sorted({*btcbot._HOMES, "__version__"})
    assert set(btcbot.__all__) <= set(dir(btcbot))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'btcbot' has no attribute 'Backtesters'"):
        _ = btcbot.Backtesters


# One fact in two places


def test_the_metrics_know_every_rule_of_the_risk_manager() -> None:
    import numpy as np

    from btcbot.engine.limits import REFUSALS, moment
    from btcbot.engine.risk import RiskManager
    from btcbot.market.profile import broker_profile

    bar = np.array([0, 1, 1, 1, 1, 0])
    used = RiskManager(broker_profile("crypto-24x7")).used(moment(60_000, 1, 1, 0, 100), bar=bar)
    assert (REFUSALS, tuple(used)) == (RISK_RULES, RISK_LIMITS)


def test_settings_and_kernels_agree_on_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from btcbot.core.jit import cache_home

    monkeypatch.setenv("BTCBOT_HOME", str(tmp_path))
    for cache in ("", str(tmp_path / "cache")):
        monkeypatch.setenv("BTCBOT_CACHE", cache)
        assert load_settings().cache == cache_home()


# Processes that are killed. A family is a parent and its child; both print their process ids, and are watched from here.

CHILD = """
import os, time
from btcbot.core.process import exit_when_stdin_closes, exit_with_parent, read_secret, report_ready
read_secret()
{switch}
report_ready(pid=os.getpid())
while True: time.sleep(0.05)
"""
PARENT = """
import subprocess, sys, time
from btcbot.core.process import Child
with Child([sys.executable, "-c", {child!r}], secret="correct horse battery") as child:
    print(child.pid, child.ready["pid"], flush=True)
    {then}
"""


def is_running(pid: int) -> bool:
    """Tell whether process `pid` exists and isn't a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def within(seconds: float, claim: Callable[[], bool]) -> bool:
    """Tell whether `claim` comes true in time."""
    end = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def family(switch: str, then: str) -> tuple[subprocess.Popen[str], int]:
    """Start a parent that does `then` beside a child with `switch`; return the parent and the child's process id."""
    code = PARENT.format(child=CHILD.format(switch=switch), then=then)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert parent.stdout is not None
    started, reported = parent.stdout.readline().split()
    assert started == reported
    return parent, int(reported)


@pytest.mark.parametrize("switch", ["exit_when_stdin_closes()", "exit_with_parent(0.05)"])
def test_a_child_does_not_outlive_a_killed_parent(switch: str) -> None:
    parent, child = family(switch, "time.sleep(60)")
    assert is_running(child)
    parent.kill()
    parent.communicate()
    assert within(5.0, lambda: not is_running(child))


def test_a_sibling_does_not_hold_the_switch_open() -> None:
    parent, child = family("exit_when_stdin_closes()", "print(subprocess.Popen(['sleep', '20']).pid, flush=True); time.sleep(60)")
    assert parent.stdout is not None
    sibling = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    assert within(5.0, lambda: not is_running(child))
    assert is_running(sibling)
    os.kill(sibling, signal.SIGTERM)
    parent.communicate()


def test_an_interrupted_parent_stops_its_child() -> None:
    parent, child = family("exit_when_stdin_closes()", "time.sleep(60)")
    parent.send_signal(signal.SIGINT)
    assert parent.wait(10) != 0
    parent.communicate()
    assert not is_running(child)


def test_an_exit_in_the_ordinary_way_is_not_disturbed() -> None:
    code = "from btcbot.core.process import exit_when_stdin_closes; exit_when_stdin_closes(); print('done')"
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.wait(10) == 0  # its stdin is still open
    assert process.communicate() == ("done\n", "")


def test_a_secret_is_in_no_argument_and_no_variable() -> None:
    code = "import os, sys; from btcbot.core.process import read_secret, report_ready; secret = read_secret()\n"
    code += "report_ready(length=len(secret), seen=any(secret in text for text in (*sys.orig_argv, *os.environ.values())))"
    with Child([sys.executable, "-c", code], secret="correct horse battery") as child:
        assert child.ready == {"length": 21, "seen": False}


def test_progress_of_two_processes_shares_a_file(tmp_path: Path) -> None:
    code = (
        "from btcbot.core.progress import progress\nwith progress(500, 'Work') as bar:\n    for _ in range(500): bar.update(), bar._write()"
    )
    environment = {**os.environ, "BTCBOT_PROGRESS": str(file := tmp_path / "progress.jsonl")}
    workers = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    states = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len({state["id"] for state in states}) == 2
    assert sum(state["done"] and state["n"] == 500 for state in states) == 2
