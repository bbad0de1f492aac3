"""Programs that others wrote run unmodified on the twin, and through server and client, with equal results.

They come from PyPI into a folder of their own (requirements/external.txt); MetaTrader5 itself has no wheel for Linux and macOS.
"""

import json
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from programs import PROGRAMS

from btcbot.cli_terminal import terminal_app
from btcbot.core.config import SERVER_VARIABLE
from btcbot.core.process import Child
from btcbot.market.profile import broker_profile
from btcbot.terminal.contract import FUNCTIONS, BuiltinFunction, Terminal
from btcbot.terminal.learn import Clock
from btcbot.terminal.module import installed, package_module, run_program
from btcbot.terminal.probe import probe
from btcbot.terminal.remote import RemoteTerminal
from btcbot.terminal.twin import twin_from_url

ROOT = Path(__file__).parents[2]
EXTERNAL = ROOT / ".venv" / "external"
MARKET = "twin://?seed=1&from=2024-03-04&to=2024-03-08&start=2024-03-06T12:00"
NOW = datetime(2024, 3, 6, 12, tzinfo=UTC)
SYMBOL, LOGIN = "BTCUSD", 10_001

pytestmark = pytest.mark.skipif(not EXTERNAL.is_dir(), reason="the programs of others are not installed: make test does it")


class Recorder:
    """The package over a terminal, with every call written down."""

    def __init__(self, terminal: Terminal) -> None:
        self.module, self.calls, self.failures = package_module(terminal), Counter[str](), list[tuple[str, int]]()
        for name in FUNCTIONS:
            setattr(self.module, name, BuiltinFunction(name, self._recorded(terminal, name), FUNCTIONS[name]))

    def _recorded(self, terminal: Terminal, name: str) -> Callable[..., object]:
        function: Callable[..., object] = getattr(terminal, name)

        def call(*arguments: object, **keywords: object) -> object:
            self.calls[name] += 1
            value = function(*arguments, **keywords)
            if value is None or value is False:
                self.failures.append((name, terminal.last_error()[0]))
            return value

        return call


@pytest.fixture(scope="module", autouse=True)
def libraries() -> Iterator[None]:
    """Put the programs of others on the path, on a machine whose clock shows UTC: naive times are its own."""
    zone = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    sys.path.insert(0, str(EXTERNAL))
    try:
        yield
    finally:
        sys.path.remove(str(EXTERNAL))
        os.environ.pop("TZ")
        if zone is not None:
            os.environ["TZ"] = zone
        time.tzset()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Yield URL and token of a server on the twin, in a process of its own."""
    token, folder = secrets.token_urlsafe(32), tmp_path_factory.mktemp("server")
    options = ["--terminal", MARKET, "--port", "0", "--token-stdin", "--journal", str(folder / "server.sqlite3")]
    with Child([sys.executable, "-m", "mt5_server", *options], token, 60.0, folder / "server.log") as child:
        yield str(child.ready["url"]), token


@pytest.fixture(scope="module")
def terminals(server: tuple[str, str]) -> Iterator[dict[str, Recorder]]:
    """Yield a twin in this process, and a client of the server on an equal one."""
    remote = RemoteTerminal(*server)
    yield {"twin": Recorder(twin_from_url(MARKET)), "remote": Recorder(remote)}
    remote.shutdown()


# A program may ask for what isn't there, and be told so; nothing else may fail.
EXPECTED_FAILURES = {"pdmt5": [("symbol_info", -4)]}

# Which functions each program calls. A change here is a change of the program or of what we answer.
READING = {
    "account_info",
    "copy_rates_range",
    "history_deals_get",
    "initialize",
    "order_calc_margin",
    "orders_get",
    "positions_get",
    "shutdown",
}
READING |= {"symbol_info", "symbol_info_tick", "terminal_info", "order_send"}
CALLS = {
    "pdmt5": set(FUNCTIONS) - {"login"},
    "mt5cli": READING
    | {"copy_rates_from", "copy_rates_from_pos", "copy_ticks_from", "copy_ticks_range", "history_orders_get", "last_error", "order_check"}
    | {"symbols_get", "symbols_total", "version"},
    "mt5py": READING | {"copy_ticks_range", "order_calc_profit", "order_check"},
    "aiomql": set(FUNCTIONS) - {"history_deals_total", "history_orders_total", "last_error", "symbols_get"},
    "pymt5adapter": READING
    | {"copy_rates_from_pos", "copy_ticks_from", "history_deals_total", "history_orders_get", "last_error", "order_calc_profit"}
    | {"orders_total", "symbols_get", "symbols_total", "version"},
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_runs_and_gives_the_same_on_both(name: str, terminals: dict[str, Recorder], tmp_path: Path) -> None:
    """Run one library's functions on the twin and through the server: equal results, equal calls, no call that fails."""
    found: dict[str, object] = {}
    for kind, recorder in terminals.items():
        recorder.calls.clear()
        recorder.failures.clear()
        (folder := tmp_path / kind).mkdir()
        with installed(recorder.module):
            found[kind] = PROGRAMS[name](SYMBOL, NOW, LOGIN, folder)
        assert recorder.failures == EXPECTED_FAILURES.get(name, []), kind
    # As text: NaN in a table is equal to itself there.
    assert repr(found["remote"]) == repr(found["twin"])
    assert terminals["remote"].calls == terminals["twin"].calls
    calls = terminals["twin"].calls
    print(f"\n{name}: {calls.total()} calls of {len(calls)} functions: {', '.join(f'{n} {calls[n]}' for n in sorted(calls))}")
    assert set(calls) == CALLS[name]


def test_together_they_call_every_function() -> None:
    """See to it that no function of the package is left to our own programs alone."""
    assert set().union(*CALLS.values()) == set(FUNCTIONS)
    assert CALLS.keys() == PROGRAMS.keys()


@pytest.mark.parametrize("kind", ["twin", "remote"])
def test_probe_finds_the_contract(kind: str, terminals: dict[str, Recorder]) -> None:
    """Probe both as a user would probe a terminal: nothing differs from the contract, and the profile is the twin's."""
    found = probe(terminals[kind].module, SYMBOL, "UTC", clock=Clock(lambda: int(NOW.timestamp() * 1000)))
    assert found.differences == ()
    assert len(found.checks) > 80
    spec = broker_profile("crypto-24x7").symbol
    assert found.profile.symbol == replace(spec, spread_bps=0.0, slippage_bps=0.0)


def test_command_runs_a_program_through_the_server(
    server: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run a program by `btcbot terminal run` on a server's URL; its exit code is the command's."""
    url, token = server
    program = tmp_path / "bot.py"
    program.write_text(
        "import sys\nimport MetaTrader5 as mt5\nassert mt5.initialize()\nprint(mt5.account_info().login)\nsys.exit(len(sys.argv))\n"
    )
    monkeypatch.setenv("BTCBOT_HOME", str(tmp_path))
    monkeypatch.setenv("BTCBOT_CACHE", os.environ.get("BTCBOT_CACHE", str(tmp_path)))
    monkeypatch.setenv(SERVER_VARIABLE, token)
    with pytest.raises(SystemExit) as ended:
        terminal_app(["run", str(program), "a", "--terminal", url, "--", "--own-option"])
    assert ended.value.code == 3
    assert capsys.readouterr().out == f"{LOGIN}\n"


def test_command_of_a_library_runs_as_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run `python -m mt5cli` by way of `run_program`: arguments, output file and exit code."""
    for package in [name for name in sys.modules if name.partition(".")[0] in {"mt5cli", "pdmt5"}]:
        del sys.modules[package]
    twin = twin_from_url(MARKET)
    path = tmp_path / "rates.json"
    options = ["rates-from-pos", "--symbol", SYMBOL, "--timeframe", "M1", "--start-pos", "0", "--count", "4"]
    assert run_program("mt5cli", ["--output", str(path), *options], twin) == 0
    assert len(json.loads(path.read_text())) == 4
    assert run_program("mt5cli", ["--output", str(path), "no-such-command"], twin) == 2
    assert "no-such-command" in capsys.readouterr().err
    assert "MetaTrader5" not in sys.modules
