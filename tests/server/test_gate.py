"""The door to the terminal and the process behind it: hangs, deaths, restarts, and what is in the way meanwhile."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_terminal import FakeTerminal, FakeTwin

from btcbot.core.errors import BtcbotError
from mt5_server.channel import Gone
from mt5_server.gate import Gate, Step, StepConflict, TerminalFailed
from mt5_server.worker import CLIENTS, KEY_VARIABLE, FairLock

KEY = "k" * 32
HERE = Path(__file__).parent
WINDOWS = sys.platform == "win32"
Call = tuple[str, tuple[object, ...], dict[str, object]]


def do(what: str) -> Call:
    """Return the call that makes the fake do something."""
    return "symbol_select", (what,), {}


TOTAL: Call = ("symbols_total", (), {})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the fake package notes what it did."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE / "fake_mt5"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("FAKE_MT5_FOLDER", str(tmp_path))
    return tmp_path


@pytest.fixture
def native(folder: Path) -> Iterator[Callable[..., Gate]]:
    """Return a function that opens the door to a native terminal in a worker process."""
    gates: list[Gate] = []

    def open_gate(timeout_s: float = 20.0) -> Gate:
        gates.append(Gate.open("mt5://", "NY+7", timeout_s))
        return gates[-1]

    yield open_gate
    for gate in gates:
        gate.close()


def until(claim: Callable[[], bool], limit_s: float = 20.0) -> bool:
    """Wait until `claim` holds."""
    deadline = time.monotonic() + limit_s
    while not claim() and time.monotonic() < deadline:
        time.sleep(0.01)
    return claim()


# ---- the worker process


def test_a_worker_answers_measures_and_ends(native: Callable[..., Gate], folder: Path) -> None:
    gate, seen = native(), []
    gate.observe = lambda name, seconds, code: seen.append((name, seconds > 0, code))
    total, rates = gate.batch([TOTAL, ("copy_rates_from_pos", ("BTCUSD", 1, 0, 10_000), {})])
    assert (total.value, total.error) == (7, (1, "Success"))
    assert rates.value["close"][9] == 3.0
    assert rates.value.dtype.itemsize == 60
    assert seen == [("symbols_total", True, 1), ("copy_rates_from_pos", True, 1)]
    assert (gate.clock_rule, gate.is_lock_step, gate.is_simulated, gate.state, gate.busy_s) == ("NY+7", False, False, "up", 0.0)
    assert gate.relay([]) == b"[]"
    pid = gate.worker_pid
    gate.close()
    assert until(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    """Say whether a process runs; one that ended and was not asked for its status doesn't."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rsplit(")", 1)[-1].split()[0] == "Z")


def test_a_hang_is_answered_and_the_late_answer_is_thrown_away(native: Callable[..., Gate], folder: Path) -> None:
    gate = native(0.3)
    began = time.monotonic()
    hung, after = gate.batch([do("sleep 1.2"), do("write executed")])
    assert (hung.value, hung.error, after.error) == (None, (-10005, "IPC timeout"), (-10005, "IPC timeout"))
    assert time.monotonic() - began < 1.0
    assert gate.busy_s > 0
    second = gate.batch([do("write never")], timeout_s=0.2)[0]  # the door is shut, so this one is never sent
    assert second.error == (-10005, "IPC timeout")
    assert until(lambda: gate.busy_s == 0.0)
    assert gate.batch([TOTAL])[0].value == 7  # and not what the late answer was
    assert (folder / "executed").exists()
    assert not (folder / "never").exists()


@pytest.mark.skipif(WINDOWS, reason="needs usleep")
def test_a_call_that_keeps_the_interpreters_lock_stops_nothing_here(native: Callable[..., Gate]) -> None:
    gate, longest = native(), 0.0
    thread = threading.Thread(target=gate.batch, args=([do("hold 0.6")],))
    thread.start()
    before = time.monotonic()
    while thread.is_alive():
        assert gate.state == "up"
        _ = gate.busy_s
        now = time.monotonic()
        longest, before = max(longest, now - before), now
        time.sleep(0.001)
    assert longest < 0.4


def test_a_native_worker_that_dies_is_started_again(native: Callable[..., Gate], folder: Path) -> None:
    gate = native()
    first = gate.worker_pid
    assert gate.batch([do("die")])[0].error == (-10002, "IPC recv failed")
    assert gate.batch([TOTAL])[0].error == (-10001, "IPC send failed")
    assert gate.state == "starting"
    assert until(lambda: gate.state == "up")
    assert gate.batch([TOTAL])[0].value == 7
    assert gate.worker_pid != first
    assert gate.restarts == 1


def test_a_simulated_market_that_died_is_not_replaced(native: Callable[..., Gate]) -> None:
    gate = native()
    gate._channel._can_start_again = False  # as for twin://
    assert gate.batch([do("die")])[0].error == (-10002, "IPC recv failed")
    assert gate.state == "down"
    assert gate.batch([TOTAL])[0].error == (-10001, "IPC send failed")
    with pytest.raises(Gone):
        gate.advance(step(1))
    assert gate.restarts == 0


def test_a_terminal_that_was_closed_is_connected_again(native: Callable[..., Gate], folder: Path) -> None:
    gate = native()
    (folder / "refuse").touch()
    assert gate.batch([do("close"), TOTAL])[1].error == (-10004, "No IPC connection")
    (folder / "refuse").unlink()
    time.sleep(0.25)
    assert gate.batch([TOTAL])[0].value == 7
    assert gate.reconnects == 1


def test_a_hang_without_an_end(native: Callable[..., Gate], monkeypatch: pytest.MonkeyPatch) -> None:
    gate = native(0.1)
    gate.batch([do("sleep 600")])
    gate.look()
    assert gate.state == "up"
    with monkeypatch.context() as patch:
        patch.setattr("mt5_server.channel.HANG_S", 0.0)
        gate.look()
    assert until(lambda: gate.restarts == 1)
    assert until(lambda: gate.batch([TOTAL], timeout_s=5.0)[0].value == 7)


def test_a_terminal_that_does_not_start(native: Callable[..., Gate], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "refuse").touch()
    with pytest.raises(BtcbotError, match=r"doesn't answer \(-10005: IPC timeout\)"):
        native()
    (folder / "refuse").unlink()
    with pytest.raises(BtcbotError, match="'Mars' is no server clock"):
        Gate.open("mt5://", "Mars")
    monkeypatch.delenv("FAKE_MT5_FOLDER")  # so that the package can't even be imported
    with pytest.raises(BtcbotError, match="ended with status 1"):
        native()


def test_a_worker_ends_with_its_server_after_its_call(folder: Path) -> None:
    code = (
        "import sys, threading, time; from mt5_server.gate import Gate; gate = Gate.open('mt5://');"
        "calls = [('symbol_select', (what,), {}) for what in ('sleep 0.5', 'write done')];"
        "threading.Thread(target=gate.batch, args=(calls,)).start();"
        "time.sleep(0.2); print(gate.worker_pid, flush=True); time.sleep(600)"
    )
    front = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert front.stdout is not None
    worker = int(front.stdout.readline())
    front.kill()
    front.communicate()
    assert is_running(worker)
    assert until(lambda: not is_running(worker))
    assert (folder / "done").exists()


# ---- a worker that was started separately


@pytest.fixture
def separate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple["subprocess.Popen[str]", str]]]:
    """Return a function that starts a worker by hand."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    started: list[subprocess.Popen[str]] = []

    def start(port: int = 0) -> tuple["subprocess.Popen[str]", str]:
        command = [sys.executable, "-m", "mt5_server.worker", "--terminal", "mt5://", "--port", str(port)]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(worker)
        assert worker.stdout is not None
        return worker, str(json.loads(worker.stdout.readline())["address"])

    yield start
    for worker in started:
        worker.kill()
        worker.communicate()


def test_a_separate_worker_outlives_its_servers(
    separate: Callable[..., tuple["subprocess.Popen[str]", str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, address = separate()
    gate = Gate.open(f"worker://{address}")
    session = gate.session
    assert gate.batch([TOTAL])[0].value == 7
    gate.close()
    again, other = Gate.open(f"worker://{address}"), Gate.open(f"worker://{address}")
    assert again.session == session
    assert again.batch([TOTAL])[0].value == other.batch([TOTAL])[0].value == 7
    for key, word in (("x" * 32, "can't be reached"), ("", "key")):
        monkeypatch.setenv(KEY_VARIABLE, key)
        with pytest.raises(BtcbotError, match=word):
            Gate.open(f"worker://{address}")
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    # It goes, and comes back at the same place: the server finds it again.
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0
    assert again.batch([TOTAL])[0].error[0] in (-10001, -10002)
    separate(int(address.rpartition(":")[2]))
    assert until(lambda: again.state == "up")
    assert again.batch([TOTAL])[0].value == 7
    assert again.session != session
    again.close()
    other.close()


def test_a_separate_worker_ends_after_its_call(separate: Callable[..., tuple["subprocess.Popen[str]", str]], folder: Path) -> None:
    worker, address = separate()
    gate = Gate.open(f"worker://{address}")
    thread = threading.Thread(target=gate.batch, args=([do("sleep 0.5"), do("write done")],))
    thread.start()
    time.sleep(0.2)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0
    thread.join()
    assert (folder / "done").exists()
    gate.close()


def test_a_worker_without_a_key(folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    command = [sys.executable, "-m", "mt5_server.worker", "--terminal", "mt5://", "--port", "0"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert KEY_VARIABLE in found.stderr


def test_nobody_answers_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with pytest.raises(BtcbotError, match="can't be reached"):
        Gate.open("worker://127.0.0.1:9")


# ---- steps and order, in this process


def step(number: int, client: str = "c" * 32, bars: int = 1) -> Step:
    """Return a step."""
    return Step(client, number, bars, [TOTAL])


def test_steps() -> None:
    twin = FakeTwin()
    gate = Gate.local(twin, "NY+7")
    assert gate.is_lock_step
    assert gate.advance(step(1))[1][0].value == 1
    assert gate.advance(step(1))[1][0].value == 1
    assert twin.now == 1
    for wrong in (step(3), step(1, bars=2), step(2, "d" * 32)):
        with pytest.raises(StepConflict):
            gate.advance(wrong)
    assert gate.advance(step(2, bars=3))[1][0].value == 4
    for number in range(CLIENTS + 1):
        gate.advance(step(1, f"{number:032x}"))
    with pytest.raises(StepConflict):
        gate.advance(step(2, f"{0:032x}"))


def test_a_step_that_fails_is_not_taken_again() -> None:
    twin = FakeTwin()
    gate = Gate.local(twin)
    for _ in range(2):
        with pytest.raises(TerminalFailed):
            gate.advance(Step("c" * 32, 1, 1, [("market_book_add", ("X",), {})]))  # which the fake doesn't have
    assert twin.now == 1
    assert gate.advance(step(2))[1][0].value == 2


def test_one_call_at_a_time() -> None:
    terminal, inside, seen = FakeTerminal(), threading.Lock(), []

    def tick(symbol: str) -> None:
        seen.append(inside.acquire(blocking=False))
        terminal.error = (-4, symbol)
        threading.Event().wait(0.002)
        inside.release()

    terminal.symbol_info_tick = tick
    gate, errors = Gate.local(terminal), []

    def work(name: str) -> None:
        errors.extend((name, gate.batch([("symbol_info_tick", (name,), {})])[0].error[1]) for _ in range(10))

    threads = [threading.Thread(target=work, args=(f"symbol {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 40
    assert all(seen)
    assert all(name == error for name, error in errors)  # nobody got the error of another one's call


def test_the_lock_is_given_in_order() -> None:
    lock, order = FairLock(), []

    def work(number: int) -> None:
        with lock:
            order.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    with lock:
        for number, thread in enumerate(threads):
            thread.start()
            assert until(lambda known=number: lock._last == known + 2)
    for thread in threads:
        thread.join()
    assert order == list(range(20))


def test_gone_says_what_the_package_says() -> None:
    assert str(Gone(-10005)) == "IPC timeout"
