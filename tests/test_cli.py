"""The `btcbot` command as a person runs it: a process of its own, its output and its exit code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import btcbot

COMMAND = [sys.executable, "-c", "import sys; from btcbot.cli import main; sys.exit(main())"]
# `main` with a job in place of `run_demo` that says that it has begun, and then does something.
DEMO = """
import sys, time, types
jobs = types.ModuleType("btcbot.ops.demo")
def run_demo(*given):
    print("begun", flush=True)
    {then}
jobs.run_demo = run_demo
sys.modules.update({{"btcbot.ops": types.ModuleType("btcbot.ops"), "btcbot.ops.demo": jobs}})
from btcbot.cli import main
sys.exit(main(["demo"]))
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the command a home and a cache of its own."""
    for name in [name for name in os.environ if name.startswith("BTCBOT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BTCBOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BTCBOT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run `command` to its end."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_help_and_version() -> None:
    done = run(*COMMAND, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"btcbot {btcbot.__version__}\n", "")
    done = run(*COMMAND, "--help")
    assert done.returncode == 0 and "doctor" in done.stdout and "demo" in done.stdout
    done = run(*COMMAND, "demo", "--help")
    for option in ("--data", "--from", "--to", "--strategy", "--seed", "--out"):
        assert option in done.stdout


def test_help_loads_little() -> None:
    done = run(sys.executable, "-X", "importtime", *COMMAND[1:], "--help")
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert loaded.isdisjoint({"numpy", "numba", "pandas", "pyarrow", "duckdb", "pydantic", "requests", "rich", "prometheus_client", "tqdm"})


@pytest.mark.parametrize("arguments", [["--nonsense"], ["nonsense"], ["demo", "--seed", "x"]])
def test_wrong_usage_is_explained(arguments: list[str]) -> None:
    done = run(*COMMAND, *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "Error: " in done.stderr and "--help" in done.stderr


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('log_level = "loud"', "log_level is 'loud': it takes DEBUG, INFO, WARNING or ERROR."),
        ("log_levl = 1", "log_levl (= 1) is no setting: did you mean log_level?"),
        ('api_key = "hunter22"', "api_key is no setting: secrets don't belong in this file"),
        ("log_level", "is not TOML"),
    ],
)
def test_a_mistake_in_the_settings_is_one_sentence(home: Path, text: str, sentence: str) -> None:
    (home / "btcbot.toml").write_text(text, encoding="utf-8")
    done = run(*COMMAND, "doctor")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"btcbot: {home / 'btcbot.toml'}") and sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1 and "hunter22" not in done.stderr


def test_doctor_on_a_fresh_home(home: Path) -> None:
    done = run(*COMMAND, "doctor")
    lines = done.stdout.splitlines()
    levels = {line[5:].partition(":")[0]: line[:4].strip() for line in lines}
    assert levels.keys() >= {"python", "settings", "secrets", "disk", "kernel cache", "extras", "store", "clock", "terminal"}
    assert done.returncode == ("fail" in levels.values()), done.stdout
    assert (levels["store"], levels["kernel cache"], levels["clock"], levels["terminal"]) == ("ok", "ok", "warn", "warn")
    assert all(" -> " in line for line in lines if line.startswith(("warn", "fail")))
    assert not list(home.iterdir())  # it looks and leaves nothing behind


def test_doctor_fails_where_trading_would(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "btcbot.toml").write_text('terminal_url = "http://127.0.0.1:9"\ntoken_env = "MY_TOKEN"', encoding="utf-8")
    done = run(*COMMAND, "doctor")
    assert done.returncode == 1
    assert "fail secrets: the environment variable MY_TOKEN is not set" in done.stdout
    monkeypatch.setenv("MY_TOKEN", "correct horse battery")
    done = run(*COMMAND, "doctor")
    assert done.returncode == 1
    assert "ok   secrets" in done.stdout and "warn clock" in done.stdout and "fail terminal" in done.stdout
    assert "Traceback" not in done.stderr and "correct horse" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("then", "code", "last"),
    [
        ("return 0", 0, ""),
        ("return 1", 1, ""),
        ("from btcbot.core.errors import BtcbotError; raise BtcbotError('There are no bars.')", 2, "btcbot: There are no bars."),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_how_a_job_ends(then: str, code: int, last: str) -> None:
    done = run(sys.executable, "-c", DEMO.format(then=then))
    assert done.returncode == code
    assert (done.stderr.splitlines() or [""])[-1] == last
    assert ("Traceback" in done.stderr) == (then == "1 / 0")


def test_ctrl_c_ends_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", DEMO.format(then="time.sleep(60)")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (130, "", "")


@pytest.mark.jit
@pytest.mark.skipif(sys.platform == "win32", reason="sends signals, which Windows doesn't have")
def test_following_ends_cleanly(home: Path) -> None:
    """SIGTERM ends `ingest --follow` with exit code 0; what came is stored, and the next run has nothing to fetch again."""
    url = "twin://?seed=3&from=2024-01-02&to=2024-01-04&start=2024-01-03T12:01"
    arguments = [*COMMAND, "ingest", "--source", url, "--since", "2024-01-02"]
    process = subprocess.Popen([*arguments, "--follow"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    store = home / "store"
    for _ in range(600):
        if list(store.glob("*/*/*/2024-01.parquet")):
            break
        time.sleep(0.1)
    time.sleep(1.0)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=20)
    assert (process.returncode, "Traceback" in errors) == (0, False), errors
    assert time.monotonic() - began < 3
    assert "rows added" in out
    again = run(*arguments)
    assert "Twin-Crypto / BTCUSD / M1: 0 rows added, 0 revised" in again.stdout, again.stdout + again.stderr
    assert "ok   store" in run(*COMMAND, "store", "check").stdout
