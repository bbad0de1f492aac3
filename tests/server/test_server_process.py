"""The command `mt5-server` as a process: its first line, its end, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from fake_terminal import ORDER, TOKEN

from btcbot.core.config import SERVER_VARIABLE
from btcbot.terminal.journal import order_key
from btcbot.terminal.remote import RemoteTerminal
from mt5_server.__main__ import main
from mt5_server.config import parse
from mt5_server.worker import KEY_VARIABLE

TWIN = "twin://?seed=1&from=2024-03-04&to=2024-03-04T06:00"
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="sends signals, which Windows doesn't have")
Start = Callable[..., "subprocess.Popen[str]"]


# The server, with all the time it needs to end in good order when its parent is gone.
PATIENT = "import sys; from mt5_server import __main__ as server; server.GRACE_S = 60.0; sys.exit(server.main())"


def arguments(folder: Path, *how: str) -> list[str]:
    """Return the command that serves a small market."""
    how = how or ("-m", "mt5_server")
    return [sys.executable, *how, "--terminal", TWIN, "--port", "0", "--journal", str(folder / "orders.sqlite3")]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts the server as a child which gets its token through a pipe."""
    started: list[subprocess.Popen[str]] = []

    def run(*how: str) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        child = subprocess.Popen([*arguments(tmp_path, *how), "--token-stdin"], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
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
    child = start("-c", PATIENT)
    client = RemoteTerminal(str(first_line(child)["url"]), TOKEN)
    assert client.initialize(), client.last_error()
    assert client.clock.rule == "UTC"
    found = client.send({**ORDER, "type_filling": 1}, order_key("process"))
    assert found.outcome == "done", found
    assert client.advance(1, [("positions_total", (), {})]) == (1, [1])
    began = time.monotonic()
    output, log = child.communicate()  # closes the pipe
    print(f"\nthe server ended {time.monotonic() - began:.2f} s after its pipe")
    assert child.returncode == 0  # in good order; how soon it is gone at the latest, other tests ask
    assert output == ""
    assert "done, retcode 10009" in log
    assert TOKEN not in log


def test_one_server_a_journal(start: Start) -> None:
    first_line(start())
    second = start()
    assert second.wait(60) == 2
    assert second.stderr is not None
    assert "Another server uses the journal" in second.stderr.read()


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


def test_a_call_that_hangs_does_not_keep_an_orphan_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "fake_mt5"))
    monkeypatch.setenv("FAKE_MT5_FOLDER", str(tmp_path))
    monkeypatch.setenv("FAKE_MT5_SIMULATED", "1")
    monkeypatch.setenv(KEY_VARIABLE, "k" * 32)
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "mt5_server.worker", "--terminal", "mt5://", "--port", "0"]
    worker = subprocess.Popen(command, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    assert worker.stdout is not None
    address = json.loads(worker.stdout.readline())["address"]
    options = ["--terminal", f"worker://{address}", "--port", "0", "--journal", str(tmp_path / "orders.sqlite3"), "--token-stdin"]
    child = subprocess.Popen([sys.executable, "-m", "mt5_server", *options], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    try:
        assert child.stdin is not None
        child.stdin.write(TOKEN + "\n")
        child.stdin.flush()
        url = str(first_line(child)["url"])
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with pytest.raises(requests.Timeout):
            requests.post(f"{url}/v1/call", json={"calls": [["symbol_select", ["sleep 600"]]]}, headers=headers, timeout=0.5)
        slowest = 0.0
        for _ in range(20):  # while the terminal hangs
            began = time.monotonic()
            assert requests.get(f"{url}/health", timeout=5).json()["status"] in ("ok", "busy")
            slowest = max(slowest, time.monotonic() - began)
        print(f"\n/health while a call hangs: at most {slowest * 1000:.0f} ms")
        assert slowest < 1.0  # 0.1 is what is promised, on a machine that does nothing else
        child.stdin.close()
        began = time.monotonic()
        assert child.wait(10) == 1
        assert time.monotonic() - began < 3
    finally:
        for process in (child, worker):
            process.kill()
            process.wait()


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
    options = ["--folder", str(tmp_path), "--terminal", TWIN]
    monkeypatch.delenv(SERVER_VARIABLE, raising=False)
    assert main(options) == 2
    assert "mt5-server user add" in capsys.readouterr().err  # nobody could log in
    monkeypatch.setenv(SERVER_VARIABLE, "much too short")
    assert main(options) == 2
    error = capsys.readouterr().err
    assert "at least 32" in error
    assert "much too short" not in error


def test_a_token_is_not_enough_for_a_real_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SERVER_VARIABLE, TOKEN)
    assert main(["--folder", str(tmp_path), "--terminal", "mt5://"]) == 2
    assert "isn't served to whoever holds a token" in capsys.readouterr().err
    tls = ["--tls-cert", "certificate.pem", "--tls-key", "key.pem"]
    assert main(["--folder", str(tmp_path), "--terminal", TWIN, "--host", "192.168.1.5", *tls]) == 2
    assert "isn't for the network" in capsys.readouterr().err


def test_ctrl_c_before_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*ignored: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mt5_server.__main__.run", interrupt)
    assert main(["--terminal", TWIN]) == 130


def test_defaults_file_environment_and_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("MT5_SERVER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BTCBOT_HOME", str(tmp_path))
    config = parse([])
    assert (config.terminal, config.host, config.port, config.is_token_on_stdin) == ("mt5://", "127.0.0.1", 8443, False)
    assert config.journal == tmp_path / "mt5_server" / "orders.sqlite3"
    (tmp_path / "mt5_server.toml").write_text('port = 1000\nclock = "NY+7"\njournal = "j.sqlite3"\ncall_timeout_s = 5\n')
    config = parse([])
    assert (config.port, config.clock, config.journal, config.call_timeout_s) == (1000, "NY+7", tmp_path / "j.sqlite3", 5.0)
    monkeypatch.setenv("MT5_SERVER_PORT", "2000")
    monkeypatch.setenv("MT5_SERVER_ORIGINS", "https://a:1,https://b:2")
    assert (parse([]).port, parse([]).origins) == (2000, frozenset({"https://a:1", "https://b:2"}))
    assert parse(["--port", "3000"]).port == 3000
    other = tmp_path / "other.toml"
    other.write_text("streams = 3\n")
    assert parse(["--config", str(other)]).streams == 3
    assert parse(["--terminal", "worker://127.0.0.1:5000"]).is_simulated is False


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("ports = 1", "ports is no option"),
        ("port = [", "not TOML"),
        ("call_timeout_s = 0", "call-timeout-s can't be 0"),
        ('log_level = "LOUD"', "log-level can't be 'LOUD'"),
    ],
)
def test_files_that_make_no_sense(tmp_path: Path, text: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "server.toml"
    file.write_text(text)
    assert main(["--config", str(file)]) == 2
    assert word in capsys.readouterr().err
    assert main(["--config", str(tmp_path / "none.toml")]) == 2
    assert "can't be read" in capsys.readouterr().err


def test_help_is_light() -> None:
    code = "import sys; from mt5_server.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint(sorted(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("numpy", "pydantic", "flask", "pyarrow", "numba", "cryptography"):
        assert f"'{heavy}'" not in found


def test_other_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["user", "list", "--folder", str(tmp_path)]) == 0
