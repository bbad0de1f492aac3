"""Unique secrets wherever a user can put one, every command driven into success and failure, and then a search for them.

What is searched: standard output and error with the log in it, tracebacks, and every file that is left behind: store, ledgers, journals,
reports, executed notebooks, the audit trail, temporary files. A command without a case fails the test. The routes of the server have
the same in tests/server/test_canary_routes.py.
"""

import argparse
import base64
import io
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch
from urllib.parse import quote

import nbformat
import pytest
import typer
from pyotp import TOTP

from btcbot import cli
from btcbot.core import log
from btcbot.core.log import register_environment
from btcbot.data.certificates import CertificateFile
from btcbot.features.causality import certify
from btcbot.market.clock import utc_ms
from btcbot.market.synthetic import synthetic_bars
from btcbot.security.passwords import Cost
from btcbot.security.unlocking import passphrase_key
from btcbot.strategies.rules import make_strategy
from mt5_server import __main__ as server
from mt5_server import auth_cli

TWIN = "twin://?seed=3&from=2024-01-02&to=2024-01-05&start=2024-01-03&profile=crypto-24x7"
STRANGER = "ed25519:11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
KINDS = (
    "vault value",
    "second vault value",
    "passphrase",
    "password",
    "export passphrase",
    "owner token",
    "other token",
    "database password",
    "PGPASSWORD",
    "address password",
    "query token",
    "settings password",
    "settings token",
    "broker password",
    "server settings token",
)
SEED = base64.b32encode(secrets.token_bytes(20)).decode()
SECRETS = {kind: f"canary-{number:02}-{secrets.token_hex(10)}" for number, kind in enumerate(KINDS)} | {"seed": SEED}
DATABASE = f"postgresql://me:{SECRETS['database password']}@127.0.0.1:9/market"
Line = str | Callable[[float], str]


class Case(NamedTuple):
    """A command with its options, what is typed, how it ends, and which secrets it is there to show."""

    arguments: tuple[str, ...]
    status: int | None = 0  # None: whatever
    lines: tuple[Line, ...] = ()
    shows: frozenset[str] = frozenset()
    variables: Mapping[str, str] = {}


def written(secret: str) -> set[str]:
    """Return the ways in which a secret may stand somewhere."""
    raw = secret.encode()
    return {secret, quote(secret, safe=""), raw.hex(), base64.b64encode(raw).decode().rstrip("="), secret[::-1]}


def found_in(text: str, more: Mapping[str, str] = {}) -> set[str]:
    """Return which secrets `text` holds."""
    return {kind for kind, secret in (SECRETS | dict(more)).items() if any(form in text for form in written(secret))}


class Desk:
    """Somebody at the machine, whose environment and settings hold every kind of secret."""

    def __init__(self, home: Path) -> None:
        self.home, self.minute = home, 0
        self.made: dict[str, str] = {}  # secrets that the program made, and showed once
        self.ran: set[tuple[str, ...]] = set()
        self.failed: set[tuple[str, ...]] = set()
        self.leaks: list[str] = []

    def run(self, main: Callable[[list[str]], int], case: Case) -> str:
        """Run a command as a new process would: with nothing registered as a secret."""
        log._secrets.clear()
        log._pattern = re.compile(log._SHAPE)
        self.minute += 1
        now = 1_700_000_000 + 60 * self.minute
        typed = "".join(f"{line(now) if callable(line) else line}\n" for line in case.lines)
        clock = (patch("time.time_ns", lambda: now * 1_000_000_000),) if case.lines else ()
        out, err = io.StringIO(), io.StringIO()
        with (
            patch.dict(os.environ, dict(case.variables)),
            patch("sys.stdin", io.StringIO(typed)),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            for one in clock:
                one.start()
            try:
                status = main(list(case.arguments))
            except SystemExit as ended:
                status = int(ended.code or 0)
            finally:
                for one in clock:
                    one.stop()
        said = out.getvalue() + err.getvalue()
        assert case.status in (status, None), (case.arguments, status, said)
        assert "Traceback" not in said or case.status is None, said
        self.made |= {f"recovery code {code}": code for code in re.findall(r"^  ([a-z2-7]{4}(?:-[a-z2-7]{4}){3})$", out.getvalue(), re.M)}
        own = {kind for kind in self.made if "recovery codes" in case.shows} | {"seed" for _ in ("recovery codes",) if _ in case.shows}
        for kind in found_in(said, self.made) - case.shows - own:
            self.leaks.append(f"{' '.join(case.arguments[:2])}: {kind} on the screen")
        return said


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """Return a machine whose environment is full of secrets; logging is put back as it was."""
    for name in [name for name in os.environ if name.startswith(("BTCBOT_", "MT5_SERVER_"))]:
        monkeypatch.delenv(name)
    variables = {
        "HOME": str(tmp_path / "user"),
        "BTCBOT_HOME": str(tmp_path / "home"),
        "BTCBOT_CACHE": str(tmp_path / "cache"),
        "BTCBOT_STORE": str(tmp_path / "home/store"),
        "BTCBOT_LOG_LEVEL": "DEBUG",
        "BTCBOT_SERVER_TOKEN": SECRETS["owner token"],
        "BTCBOT_VAULT_SOURCE": "passphrase-env:BTCBOT_VAULT_PASSPHRASE",
        "BTCBOT_VAULT_PASSPHRASE": SECRETS["passphrase"],
        "OTHER_TOKEN": SECRETS["other token"],
        "PGPASSWORD": SECRETS["PGPASSWORD"],
        "COLUMNS": "100",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for folder in ("home", "tmp", "user", "work"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr("btcbot.security.users.DEFAULT_COST", Cost(4, 1, 1))
    monkeypatch.setattr(passphrase_key, "__defaults__", (Cost(4, 1, 1), "The passphrase"))
    monkeypatch.setattr("btcbot.security.users.new_seed", lambda: SEED)
    before, pattern = set(log._secrets), log._pattern
    yield Desk(tmp_path / "home")
    with redirect_stderr(io.StringIO()):
        log.configure_logging()
    log._secrets.clear()
    log._secrets.update(before)
    log._pattern = pattern


def leaves(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Return every command that does something."""
    inner = getattr(command, "commands", None)
    if inner is None or getattr(command, "invoke_without_command", False):
        yield path
    for name, one in (inner or {}).items():
        yield from leaves(one, (*path, name))


def code(now: float) -> str:
    """Return what the phone shows."""
    return TOTP(SEED).at(int(now))


PASSWORD = SECRETS["password"]
ME: tuple[Line, ...] = ("anna", PASSWORD, code)
NEW = frozenset({"recovery codes"})
EXPORTED = "work.export"


def cases(folder: Path) -> list[Case]:
    """Return what is done with each command, in the order in which it works; the second of each pair fails."""
    bars, series = str(folder / "bars.parquet"), ("--source", "bars", "--timeframe", "M1")
    live = ("live", "volatility-breakout", "--profile", "crypto-24x7", "--set", "channel=20", "--set", "atr=20", "--set", "strength=0.3")
    live = (*live, "--set", "hold=60", "--name", "first", "--minutes", "0.01", "--terminal")
    program, crashing = str(folder / "program.py"), str(folder / "crashing.py")
    value, second = SECRETS["vault value"], SECRETS["second vault value"]
    return [
        Case(("secrets", "init")),
        Case(("secrets", "init"), 2),
        Case(("user", "add", "anna"), 0, (PASSWORD, code), NEW),
        Case(("user", "add", "bert"), 2, ("anna", PASSWORD, "000000")),
        Case(("secrets", "set", "server/token"), 0, (value,)),
        Case(("secrets", "set", "server/token"), 2, ()),
        Case(("secrets", "set", "other"), 0, (second,)),
        Case(("secrets", "get", "other"), 0, ME, frozenset({"second vault value"})),
        Case(("secrets", "get", "other"), 2, ("anna", PASSWORD + "x", code)),
        Case(("secrets", "get", "none"), 2, ME),
        Case(("secrets", "list")),
        Case(("secrets", "list"), 2, (), frozenset(), {"BTCBOT_VAULT_PASSPHRASE": SECRETS["passphrase"] + "x"}),
        Case(("secrets", "rotate")),
        Case(("secrets", "rotate"), 2, (), frozenset(), {"BTCBOT_VAULT_SOURCE": SECRETS["passphrase"]}),
        Case(("secrets", "export", EXPORTED), 0, (*ME, SECRETS["export passphrase"])),
        Case(("secrets", "export", "another"), 2, ("anna", PASSWORD, "000000")),
        Case(("secrets", "remove", "other")),
        Case(("secrets", "remove", "other"), 2),
        Case(("secrets", "import", EXPORTED), 0, (SECRETS["export passphrase"],)),
        Case(("secrets", "import", EXPORTED), 2, (SECRETS["export passphrase"] + "x",)),
        Case(("secrets", "rekey", "--to", f"file:{folder / 'home/keys/vault.key'}"), 2, ("anna", PASSWORD, "000000")),
        Case(("secrets", "rekey", "--to", f"env:{SECRETS['passphrase']}"), 2),
        Case(("secrets", "rekey", "--to", "passphrase-env:BTCBOT_VAULT_PASSPHRASE"), 2),
        Case(("secrets", "rekey", "--to", "passphrase-env:OTHER_TOKEN"), 0, ME),
        Case(
            ("secrets", "rekey", "--to", "passphrase-env:BTCBOT_VAULT_PASSPHRASE"),
            0,
            ME,
            NEW,
            {"BTCBOT_VAULT_SOURCE": "passphrase-env:OTHER_TOKEN"},
        ),
        Case(("user", "add", "bert"), 0, (*ME, PASSWORD, code), NEW),
        Case(("user", "list")),
        Case(("user", "list"), 2, (), frozenset(), {"BTCBOT_VAULT_PASSPHRASE": "not the passphrase of it"}),
        Case(("user", "reset", "bert"), 0, ("bert", PASSWORD, code), NEW),
        Case(("user", "reset", "bert"), 2, ("bert", PASSWORD, "000000"), NEW),
        Case(("user", "remove", "bert"), 0, ("bert",)),
        Case(("user", "remove", "bert"), 2, ("bertha",)),
        Case(("ingest", "--source", bars, "--symbol", "BTCUSD", "--name", "bars")),
        Case(("ingest", "--source", f"https://me:{SECRETS['address password']}@127.0.0.1:9"), 2),
        Case(("ingest", "--source", f"https://127.0.0.1:9/?token={SECRETS['query token']}"), 2),
        Case(("ingest", "--source", f"ftp://me:{SECRETS['address password']}@host/bars.csv"), 2),
        Case(("ingest", "--source", f"ccxt:kraken?secret={SECRETS['query token']}"), 2),
        Case(("store", "info")),
        Case(("store", "check")),
        Case(("store", "compact")),
        Case(("store", "export", "rows.csv", *series)),
        Case(("store", "export", "rows.csv", "--source", "none"), 2),
        Case(("store", "revisions", *series)),
        Case(("store", "revisions", "--source", "none"), 2),
        Case(("store", "backup", "store.backup")),
        Case(("store", "backup", "store.backup"), 2),
        Case(("store", "restore", "store.backup", "--store", "another")),
        Case(("store", "restore", "nothing", "--store", "third"), 2),
        Case(("store", "retain", "--before", "2024-01-01", *series)),
        Case(("store", "retain", "--before", "never", *series), 2),
        Case(("data", "snapshot", *series)),
        Case(("data", "snapshot", "--source", "none"), 2),
        Case(("data", "list")),
        Case(("data", "verify", "00000000"), 2),
        Case(("clean", *series, "--report", "cleaned.html")),
        Case(("clean", "no-such-file.csv"), 2),
        Case(("certify", "volatility-breakout", "--data", bars, "--set", "channel=3", "--set", "atr=3", "--set", "hold=3"), None),
        Case(("certify", "no-such-strategy"), 2),
        Case(("models", "list")),
        Case(("models", "show", "none"), 2),
        Case(("models", "verify")),
        Case(("models", "promote", "none"), 2),
        Case(("models", "rollback"), 2, ME),
        Case(("models", "expire", "none"), 2),
        Case(("models", "key")),
        Case(("models", "trust", STRANGER), 0, ME),
        Case(("models", "trust", STRANGER), 2, ("anna", PASSWORD, "000000")),
        Case(("models", "trust", f"ed25519:{SECRETS['query token']}"), 2, ME),
        Case((*live, f"{TWIN}&speed=2000", "--mode", "twin")),
        Case((*live, f"https://me:{SECRETS['address password']}@127.0.0.1:9"), 2),
        Case((*live, f"{TWIN}&password={SECRETS['query token']}", "--mode", "live"), 2),
        Case(("stop", "first", "--why", "enough")),
        Case(("stop", "first", "--clear"), 0, ME),
        Case(("stop", "first", "--clear"), 2, ("anna", PASSWORD, "000000")),
        Case(("lift", "first"), 0, ME),
        Case(("lift", "first"), 2, ("anna", PASSWORD, "000000")),
        Case(("why", "first", "1"), None),
        Case(("why", "none", "1"), 2),
        Case(("costs", "first"), None),
        Case(("costs", "none"), 2),
        Case(("parity", "first", "--terminal", TWIN), None),
        Case(("parity", "first", "--terminal", f"https://me:{SECRETS['address password']}@127.0.0.1:9"), 2),
        Case(("demo", "--out", "runs"), 0),
        Case(("demo", "--data", f"postgresql://me:{SECRETS['address password']}@host/db"), 2),
        Case(("demo", "--out", "runs", "--seed", "13"), 2),
        Case(("demo", "--out", "runs", "--zone", SECRETS["other token"]), 2),
        Case(("doctor",), None),
        Case(("doctor",), 1, (), frozenset(), {"BTCBOT_TERMINAL_URL": "http://127.0.0.1:9"}),
        Case(("doctor",), None, (), frozenset(), {"BTCBOT_STORE": DATABASE.replace(f":{SECRETS['database password']}", "")}),
        Case(("terminal", "run", program, "--terminal", TWIN)),
        Case(("terminal", "run", crashing, "--terminal", TWIN), None),
        Case(("terminal", "run", program, "--terminal", f"https://me:{SECRETS['address password']}@127.0.0.1:9"), 2),
        Case(("terminal", "key", "bot.pem")),
        Case(("terminal", "key", "bot.pem", "--show")),
        Case(("terminal", "key", "bot.pem"), 2),
        Case(("terminal", "probe", TWIN, "--clock", "UTC")),
        Case(("terminal", "probe", f"https://me:{SECRETS['address password']}@127.0.0.1:9"), 2),
        Case(("audit",), None),
        Case(("audit", "--json"), None),
        Case(("audit", "trail", "--last", "99")),
        Case(("audit", "verify")),
        Case(("audit", "verify", "--hash", "f" * 64), 2),
    ]


WRONG_SETTINGS = (
    f'server_password = "{SECRETS["settings password"]}"',
    f'api_key = "{SECRETS["settings password"]}',
    f'store = "{DATABASE}"',
    f'terminal_url = "https://me:{SECRETS["address password"]}@127.0.0.1:9"',
    f'terminal_url = "https://127.0.0.1:9/?token={SECRETS["query token"]}"',
    f'token_env = "{SECRETS["settings token"]}"',
)
WITHOUT_SETTINGS = {("stop",), ("lift",), ("why",), ("costs",), ("terminal", "key")}  # they look into the home folder alone


def job(folder: Path) -> Path:
    """Write a job that ends well with one seed and badly with another."""
    body = "import json, pathlib\nif seed == 13: raise ValueError(f'no bars for {folder}')\n"
    outcome = (
        "dict(source='x', bars=1, deals=1, net_return=0.0, live_bars=1, requests=1, live_net=0.0, compared=1, differing=0, report='r')"
    )
    body += f"pathlib.Path(folder, 'outcome.json').write_text(json.dumps({outcome}))"
    notebook = nbformat.v4.new_notebook()
    notebook.metadata = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    names = ["folder", "data", "start", "end", "strategy", "profile", "zone", "live_bars", "deposit", "seed"]
    defaults = "\n".join(f"{name} = ''" for name in names)
    notebook.cells = [nbformat.v4.new_code_cell(defaults, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(body)]
    path = folder / "job.ipynb"
    nbformat.write(notebook, path)
    return path


def plant(folder: Path) -> None:
    """Write what the commands work on; the programs hold a broker's password, as many do."""
    frame = synthetic_bars(seed=3, start_ms=utc_ms("2024-01-02"), end_ms=utc_ms("2024-01-02T06:00"))
    frame.to_parquet(folder / "bars.parquet")
    broker = f"import MetaTrader5 as mt5\nmt5.initialize(login=1, password='{SECRETS['broker password']}', server='S')\n"
    (folder / "program.py").write_text(broker + "mt5.login(2, password='x'); print(mt5.last_error()); mt5.shutdown()")
    (folder / "crashing.py").write_text(
        broker.replace(f"'{SECRETS['broker password']}'", "os.environ['OTHER_TOKEN']").replace("import", "import os,", 1) + "1 / 0"
    )
    strategy = make_strategy("volatility-breakout", channel=20, atr=20, strength=0.3, hold=60)
    with CertificateFile() as certificates:
        certificates.save(certify(strategy, frame))


def left_behind(folder: Path, made: Mapping[str, str], but: set[str]) -> list[str]:
    """Return which files hold a secret, but for those that were planted with one."""
    leaks = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in but):
        text = path.read_bytes().decode("latin-1")
        leaks += [f"{path.relative_to(folder)}: {kind}" for kind in found_in(text, made)]
    return leaks


def test_no_command_gives_a_secret_away(desk: Desk, tmp_path: Path) -> None:
    plant(tmp_path)
    tree = set(leaves(typer.main.get_command(cli.app)))
    ran, failed = set[tuple[str, ...]](), set[tuple[str, ...]]()
    named: dict[tuple[str, ...], tuple[str, ...]] = {}
    with patch("btcbot.ops.demo.job_path", return_value=job(tmp_path)):
        for case in cases(tmp_path):
            leaf = max((leaf for leaf in tree if case.arguments[: len(leaf)] == leaf), key=len)
            desk.run(cli.main, case)
            named.setdefault(leaf, case.arguments)
            ran.add(leaf)
            failed |= {leaf} if case.status else set()
    assert tree == ran, f"no case for {tree - ran}"
    for leaf in sorted(tree):
        for number, text in enumerate(WRONG_SETTINGS):
            (desk.home / "btcbot.toml").write_text(text)
            is_looked_at = leaf not in WITHOUT_SETTINGS and leaf != ("demo",)
            variables = {} if number != 2 else {"BTCBOT_STORE": ""}
            if is_looked_at:
                desk.run(cli.main, Case(named[leaf], 2, (), frozenset(), variables))
        (desk.home / "btcbot.toml").unlink()
        crash = RuntimeError(f"{dict(os.environ)} {DATABASE}")
        with patch("click.Command.invoke" if leaf == () else "typer.core.TyperCommand.invoke", side_effect=crash):
            said = desk.run(cli.main, Case(named[leaf], None))
            assert leaf == ("audit",) or "RuntimeError" in said, leaf
        failed.add(leaf)
        if "--store" in str(named[leaf]) or leaf[0] in ("store", "ingest", "clean", "data"):
            desk.run(cli.main, Case((*named[leaf], "--store", DATABASE), None))
    assert tree == failed
    key = (tmp_path / "work/bot.pem").read_text().splitlines()[1]
    made = desk.made | {"key of the bot": key}
    assert len(desk.made) >= 20  # recovery codes
    leaks = desk.leaks + left_behind(tmp_path, made, {"program.py", "bot.pem"})
    assert not leaks, "\n".join(sorted(set(leaks)))


def test_no_command_of_the_server_gives_a_secret_away(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "work/bot.pem"
    assert cli.main(["terminal", "key", str(key)]) == 0
    with redirect_stdout(io.StringIO()) as public:
        cli.main(["terminal", "key", str(key), "--show"])
    monkeypatch.setenv("MT5_SERVER_VAULT_KEY", "passphrase-env:BTCBOT_VAULT_PASSPHRASE")
    vault = ("--vault-key", "passphrase-env:BTCBOT_VAULT_PASSPHRASE")
    issue = ("grant", "issue", "trend", "--account", "1", "--symbols", "BTCUSD", "--magics", "7", "--volume", "1", "--orders-a-day", "3")
    listed = [
        Case(("user", "add", "anna", *vault), 0, (PASSWORD, code), NEW),
        Case(("user", "add", "bert", *vault), 2, ("anna", PASSWORD, "000000")),
        Case(("user", "list", *vault)),
        Case(("user", "list", "--vault-key", SECRETS["passphrase"]), 2),
        Case(("user", "reset", "anna", *vault), 0, ("anna", PASSWORD, code), NEW),
        Case(("user", "reset", "bert", *vault), 2),
        Case((*issue, "--days", "3", "--key", public.getvalue().strip(), *vault), 0, ME),
        Case((*issue, "--days", "3", "--key", str(key), *vault), 2, ME),
        Case(("grant", "list", *vault)),
        Case(("grant", "list", *vault), 2, (), frozenset(), {"BTCBOT_VAULT_PASSPHRASE": "not the passphrase of it"}),
        Case(("grant", "revoke", "g-none", *vault), 2),
        Case(("token", "metrics", "prometheus", *vault), 0, ME),
        Case(("token", "metrics", "another", *vault), 2, ("anna", PASSWORD, "000000")),
        Case(("token", "list", *vault)),
        Case(("token", "revoke", "prometheus", *vault)),
        Case(("token", "revoke", "prometheus", *vault), 2),
        Case(("user", "remove", "anna", *vault), 0, ("anna",)),
        Case(("user", "remove", "anna", *vault), 2, ("bert",)),
        Case(("--terminal", f"https://me:{SECRETS['address password']}@host"), 2),
        Case(("--terminal", "mt5://"), 2),
        Case(("--terminal", TWIN, "--host", "0.0.0.0"), 2),  # noqa: S104 - refused: it has no certificate
    ]

    def actions(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if not inner:
            yield path
        for action in inner:
            for name, one in action.choices.items():
                yield from actions(one, (*path, name))

    tree = set(actions(auth_cli._parser()))
    shown = ""
    for case in listed:
        shown += desk.run(server.main, case)
    assert tree == {case.arguments[:2] for case in listed if case.arguments[0] in server.COMMANDS}, "a command without a case"
    for text in (f'token = "{SECRETS["server settings token"]}"', f'vault_key = "{SECRETS["server settings token"]}', "port = -1"):
        (desk.home / "mt5_server.toml").write_text(text)
        desk.run(server.main, Case(("--terminal", TWIN), 2))
    (desk.home / "mt5_server.toml").unlink()
    with patch("mt5_server.__main__.parse", side_effect=RuntimeError(f"{dict(os.environ)} {DATABASE}")):
        assert "RuntimeError" in desk.run(server.main, Case((), None))
    reader = re.search(r"\bbtm_[A-Za-z0-9_-]{43}\b", shown)
    assert reader
    made = desk.made | {"key of the bot": key.read_text().splitlines()[1], "token for metrics": reader[0]}
    assert not desk.leaks, desk.leaks
    assert not (leaks := left_behind(tmp_path, made, {"bot.pem"})), leaks


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the system has no /proc")
def test_a_server_that_we_start_has_its_token_neither_in_its_arguments_nor_in_its_environment(tmp_path: Path) -> None:
    from btcbot.core.process import Child

    token = secrets.token_urlsafe(32)
    command = [sys.executable, "-m", "mt5_server", "--terminal", TWIN, "--port", "0", "--token-stdin", "--folder", str(tmp_path)]
    with Child(command, token, log=tmp_path / "log", env={"BTCBOT_HOME": str(tmp_path)}) as child:
        family = [child.pid or 0, *map(int, Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split())]
        seen = b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for pid in family for name in ("environ", "cmdline"))
        assert b"--token-stdin" in seen and token.encode() not in seen
        assert token not in json.dumps(child.ready)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]


def test_what_is_registered_from_the_environment_is_blacked_out_in_a_traceback_of_its_own() -> None:
    program = (
        "import os; from btcbot.core.log import redact, register_environment as r; r(os.environ); print(redact(str(dict(os.environ))))"
    )
    names = ("EXCHANGE_API_KEY", "MY_PASSWORD", "TELEGRAM_TOKEN", "PGPASSWORD", "AWS_SECRET")
    values = {name: secrets.token_hex(12) for name in names}
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | values, capture_output=True, text=True, check=True)
    assert "TELEGRAM_TOKEN" in done.stdout
    assert not [name for name, value in values.items() if value in done.stdout]
    register_environment({})
