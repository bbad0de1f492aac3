"""The demo as a user runs it: a command, a kernel and a server; what it prints and writes; and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from btcbot.data.embedded import EmbeddedStore
from btcbot.market.clock import utc_ms
from btcbot.market.synthetic import synthetic_bars

COMMAND = [str(Path(sys.executable).parent / "btcbot"), "demo"]
SPAN = ["--from", "2024-01-02", "--to", "2024-01-16", "--strategy", "volatility-breakout"]


def run(*options: str, out: Path) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run([*COMMAND, *options, "--out", str(out)], capture_output=True, text=True, timeout=300, check=False)


def only(out: Path) -> Path:
    """Return the one run in `out`."""
    (folder,) = out.iterdir()
    return folder


def deals(folder: Path) -> list[object]:
    """Return what the broker's journal of a run says, without its times."""
    with sqlite3.connect(folder / "server.sqlite") as database:
        return database.execute("SELECT body, state, result FROM orders ORDER BY created_ms, key").fetchall()


@pytest.mark.jit
def test_synthetic_market(tmp_path: Path) -> None:
    """The loop runs, the deals agree, everything is under the run's folder, nothing is left running."""
    done = run(*SPAN, "--seed", "3", out=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = only(tmp_path)
    outcome = json.loads((folder / "outcome.json").read_text())
    assert outcome["differing"] == 0
    assert outcome["compared"] >= 20
    assert outcome["requests"] <= 2 * outcome["live_bars"]
    assert f"report: {folder / 'report.html'}" in done.stdout
    assert "Traceback" not in done.stderr
    report = (folder / "report.html").read_text()
    assert "Synthetic market (seed 3)" in report
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert {"live.ipynb", "store", "orders.sqlite", "server.sqlite", "ledger.sqlite", "metrics.prom"} <= {p.name for p in folder.iterdir()}
    assert not (folder / "market.parquet").exists()
    token = [line for line in (folder / "server.log").read_text().splitlines() if "Bearer" in line]
    assert not token


@pytest.mark.jit
def test_bars_from_files(tmp_path: Path) -> None:
    """The same on bars from a CSV file; twice the same deals."""
    source = tmp_path / "bars.csv"
    synthetic_bars(5, utc_ms("2024-01-02"), utc_ms("2024-01-12")).drop(columns="spread").reset_index().to_csv(source, index=False)
    found = []
    for name in ("one", "two"):
        done = run("--data", str(source), "--strategy", "volatility-breakout", out=tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert "0" in done.stdout.split("of them different")[1].split()[0]
        found.append(deals(only(tmp_path / name)))
    assert len(found[0]) >= 10
    strip = [[(json.loads(body) | {"magic": 0, "comment": ""}, state) for body, state, _ in rows] for rows in found]
    assert strip[0] == strip[1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--data", "/no/such/file.csv"], "does not exist"),
        (["--strategy", "ma-crossove"], "did you mean"),
        (["--from", "2024-01-02", "--to", "2024-01-02"], "too short"),
    ],
)
def test_mistakes(options: list[str], text: str, tmp_path: Path) -> None:
    """A user's mistake is one sentence and exit code 2."""
    done = run(*options, out=tmp_path)
    assert (done.returncode, text in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def family(command: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    """Return the command, its kernel, the kernel's server and the process of the server's terminal."""
    parts = {"command": psutil.Process(command.pid)}
    for child in parts["command"].children(recursive=True):
        line = " ".join(child.cmdline())
        for name, mark in (("kernel", "ipykernel"), ("worker", "mt5_server.worker"), ("server", "mt5_server")):
            if mark in line:
                parts[name] = child
                break
    return parts


def live_part(out: Path) -> None:
    """Wait until the run in `out` trades."""
    for _ in range(600):
        for events in out.glob("*/progress.jsonl"):
            if '"live"' in events.read_text():
                return
        time.sleep(0.1)
    raise AssertionError("the live part never began")


def stop_in_flight(server: psutil.Process, orders: Path) -> None:
    """Stop the server at a moment when an order was written down and not answered."""
    with sqlite3.connect(f"{orders.as_uri()}?mode=ro", uri=True) as journal:
        for _ in range(5_000):
            server.suspend()
            time.sleep(0.005)  # what was on its way has arrived
            if journal.execute("SELECT count(*) FROM orders WHERE state = 'intent'").fetchone()[0]:
                return
            server.resume()
            time.sleep(0.003)
    raise AssertionError("no order was seen in flight")


@pytest.mark.jit
@pytest.mark.skipif(os.name == "nt", reason="the loop's kill switch needs POSIX parents")
@pytest.mark.parametrize(
    ("victim", "how"),
    [
        ("command", "KILL"),
        ("kernel", "KILL"),
        ("server", "KILL"),
        ("server", "KILL in flight"),
        ("worker", "KILL"),
        ("command", "INT"),
        ("command", "TERM"),
    ],
)
def test_a_death_ends_all(victim: str, how: str, tmp_path: Path) -> None:
    """Kill one of them in the live part: within 5 s none of the others is left, and the store opens."""
    command = subprocess.Popen([*COMMAND, *SPAN, "--out", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        live_part(tmp_path)
        parts = family(command)
        assert set(parts) == {"command", "kernel", "server", "worker"}
        if how.endswith("in flight"):
            stop_in_flight(parts[victim], only(tmp_path) / "orders.sqlite")
        parts[victim].send_signal(getattr(signal, f"SIG{how.split()[0]}"))
        began = time.monotonic()
        while command.poll() is None and time.monotonic() - began < 10:
            time.sleep(0.05)
        _, alive = psutil.wait_procs([p for name, p in parts.items() if name != "command"], timeout=10)
        took = time.monotonic() - began
        print(f"{victim} got SIG{how}: all gone after {took:.2f} s")
        assert not alive
        assert took < 5
        _, errors = command.communicate(timeout=10)
        assert command.returncode != 0
        if victim != "command":
            assert b"Traceback" not in errors, errors.decode()
    finally:
        for process in family(command).values() if command.poll() is None else ():
            process.kill()
        command.kill()
    if how.endswith("in flight"):
        with sqlite3.connect(only(tmp_path) / "orders.sqlite") as journal:
            assert journal.execute("SELECT count(*) FROM orders WHERE state IN ('intent', 'unknown')").fetchone()[0] == 1
    store = EmbeddedStore(only(tmp_path) / "store")
    assert len(store.series()) == 1
    assert store.info()["rows"].sum() > 1000
