"""The command `mt5-server` as a process: its first line, its end, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import requests
from fake_terminal import ORDER, TOKEN, FakeTerminal

from btcbot.core.config import SERVER_VARIABLE
from btcbot.terminal.journal import order_key
from btcbot.terminal.remote import RemoteTerminal
from mt5_server.__main__ import main
from mt5_server.config import parse

TWIN = "twin://?seed=1&from=2024-03-04&to=2024-03-04T06:00"
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="sends signals, which Windows doesn't have")
Start = Callable[..., "subprocess.Popen[str]"]


def arguments(folder: Path) -> list[str]:
    """Return the command that serves a small market."""
    return [sys.executable, "-m", "mt5_server", "--terminal", TWIN, "--port", "0", "--journal", str(folder / "orders.sqlite3")]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts the server as a child which gets its token through a pipe."""
    started: list[subprocess.Popen[str]] = []

    def run() -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        child = subprocess.Popen([*arguments(tmp_path), "--token-stdin"], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        started.append(child)
        assert child.stdin is not None
        child.stdin.write(TOKEN + "\n")
        child.stdin.flush()
        return child

    yield run
    for child in started:
        child.kill()
        child.communicate()


def first_line(child: "subprocess.Popen[str]") -> dict[str, object]:
    """Return what the server says when it is ready."""
    assert child.stdout is not None
    found: dict[str, object] = json.loads(child.stdout.readline())
    assert found["pid"] == child.pid
    return found


def test_it_serves_until_its_parent_closes_the_pipe(start: Start) -> None:
    child = start()
    client = RemoteTerminal(str(first_line(child)["url"]), TOKEN)
    assert client.initialize(), client.last_error()
    assert client.clock.rule == "UTC"
    found = client.send({**ORDER, "type_filling": 1}, order_key("process"))
    assert found.outcome == "done", found
    assert client.advance(1, [("positions_total", (), {})]) == (1, [1])
    began = time.monotonic()
    output, log = child.communicate()  # closes the pipe
    print(f"\nthe server ended {time.monotonic() - began:.2f} s after its pipe")
    assert time.monotonic() - began < 3
    assert child.returncode == 0
    assert output == ""
    assert "done, retcode 10009" in log
    assert TOKEN not in log


@POSIX
def test_sigterm_ends_it_and_the_next_one_knows_the_order(start: Start) -> None:
    child = start()
    request = {**ORDER, "type_filling": 1}
    assert RemoteTerminal(str(first_line(child)["url"]), TOKEN).send(request, order_key("once")).outcome == "done"
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == 0
    child = start()
    client = RemoteTerminal(str(first_line(child)["url"]), TOKEN)
    found = client.send(request, order_key("once"))
    assert (found.outcome, found.is_replay) == ("done", True)
    assert client.initialize()
    assert client.positions_total() == 0  # the market began anew, and the order was not sent to it


@POSIX
def test_it_does_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, text=True);"
        f"child.stdin.write('{TOKEN}\\n'); child.stdin.flush(); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, *arguments(tmp_path), "--token-stdin"]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    url = str(json.loads(parent.stdout.readline())["url"])
    assert requests.get(f"{url}/health", timeout=5).json() == {"status": "ok"}
    parent.kill()
    began = time.monotonic()
    assert parent.stdout.read() == ""  # ends when nobody holds the other end any more
    assert time.monotonic() - began < 3
    parent.wait()
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/health", timeout=5)


def test_a_call_that_hangs_does_not_keep_an_orphan_alive(tmp_path: Path) -> None:
    code = (
        "import sys, time; from types import SimpleNamespace; from mt5_server.__main__ import main; sys.modules['MetaTrader5'] = "
        "SimpleNamespace(initialize=lambda: True, symbols_total=lambda: time.sleep(600), last_error=lambda: (1, ''));"
        "sys.exit(main(sys.argv[1:]))"
    )
    options = ["--terminal", "mt5://", "--port", "0", "--journal", str(tmp_path / "orders.sqlite3"), "--token-stdin"]
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", code, *options], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    try:
        assert child.stdin is not None
        child.stdin.write(TOKEN + "\n")
        child.stdin.flush()
        client = RemoteTerminal(str(first_line(child)["url"]), TOKEN, timeout_s=0.5)
        assert client.initialize()
        assert client.symbols_total() is None
        assert client.last_error()[0] == -10005
        child.stdin.close()
        began = time.monotonic()
        assert child.wait(10) == 1
        assert time.monotonic() - began < 3
    finally:
        child.kill()
        child.wait()


@POSIX
def test_the_token_from_the_environment(tmp_path: Path) -> None:
    environment = {**os.environ, SERVER_VARIABLE: TOKEN}
    child = subprocess.Popen(arguments(tmp_path), env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        client = RemoteTerminal(str(first_line(child)["url"]), TOKEN)
        assert client.initialize()
        child.send_signal(signal.SIGINT)
        assert child.wait(10) == 0
    finally:
        child.kill()
        child.communicate()


# ---- what is refused, each with one sentence and exit code 2


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--terminal", "https://host:8443"], "no terminal that can be served"),
        (["--terminal", TWIN, "--clock", "UTC"], "leave out --clock"),
        (["--port", "65536"], "no port"),
        (["--host", "192.168.1.5"], "Plain HTTP"),
        (["--tls-cert", "certificate.pem"], "give both"),
        (["--terminal", "twin://?seed=1&data=x"], "exactly one"),
        (["--terminal", "mt5://somewhere"], "nothing after it"),
    ],
)
def test_options_that_make_no_sense(
    options: list[str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SERVER_VARIABLE, TOKEN)
    assert main(["--journal", str(tmp_path / "orders.sqlite3"), *options]) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert word in error
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_tokens_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--journal", str(tmp_path / "orders.sqlite3"), "--terminal", TWIN]
    monkeypatch.delenv(SERVER_VARIABLE, raising=False)
    assert main(options) == 2
    assert SERVER_VARIABLE in capsys.readouterr().err
    monkeypatch.setenv(SERVER_VARIABLE, "much too short")
    assert main(options) == 2
    error = capsys.readouterr().err
    assert "at least 32" in error
    assert "much too short" not in error


def test_ctrl_c_before_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*ignored: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mt5_server.__main__.run", interrupt)
    assert main(["--terminal", TWIN]) == 130


def test_a_native_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    native = ModuleType("MetaTrader5")
    fake = FakeTerminal()
    fake.error = (-10005, "IPC timeout")
    native.initialize, native.last_error = (lambda: False), fake.last_error
    monkeypatch.setitem(sys.modules, "MetaTrader5", native)
    monkeypatch.setenv(SERVER_VARIABLE, TOKEN)
    options = ["--journal", str(tmp_path / "orders.sqlite3"), "--terminal", "mt5://"]
    assert main(options) == 2
    assert "doesn't answer (-10005: IPC timeout)" in capsys.readouterr().err
    native.initialize = fake.initialize
    assert main([*options, "--clock", "Mars"]) == 2
    assert "'Mars' is no server clock" in capsys.readouterr().err


def test_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BTCBOT_HOME", str(tmp_path))
    config = parse([])
    assert (config.terminal, config.host, config.port, config.is_token_on_stdin) == ("mt5://", "127.0.0.1", 8443, False)
    assert config.journal == tmp_path / "mt5_server.sqlite3"
