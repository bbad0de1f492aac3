"""What can be chosen when the server starts: by flags, by environment (`MT5_SERVER_PORT=8443`), or by a TOML file, in this order.

The command line is read with the standard library alone, so that `mt5-server --help` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from btcbot import __version__
from btcbot.core.errors import BtcbotError

if TYPE_CHECKING:
    from pydantic import ValidationError

    from btcbot.core.config import LogFormat

DEFAULT_PORT: Final = 8443
SCHEMES: Final = ("mt5", "twin", "worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The options of one run."""

    terminal: str = "mt5://"
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    folder: Path
    journal: Path
    guard: Path | None = None
    clock: str | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    log_level: str = "INFO"
    log_file: Path | None = None
    log_format: "LogFormat" = "text"
    call_timeout_s: float = 60.0
    streams: int = 16
    origins: frozenset[str] = frozenset()
    vault_key: str | None = None
    is_token_on_stdin: bool = False

    @property
    def is_simulated(self) -> bool:
        """Say whether the URL names a simulated terminal; what is behind a worker is known when it answers."""
        return urlsplit(self.terminal).scheme == "twin"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "mt5-server",
        description="Serve a MetaTrader 5 terminal over HTTP.",
        epilog="mt5-server user|grant|token --help: people, grants of bots, tokens for metrics. Each option can also be set by an "
        "environment variable (MT5_SERVER_CALL_TIMEOUT_S=30) or in the file (call_timeout_s = 30); a flag wins over both.",
    )
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="TOML file (default: mt5_server.toml in btcbot's home folder, if there is one)")
    add(
        "--terminal",
        metavar="URL",
        help="mt5:// (on this Windows machine), twin://?... (simulated), worker://127.0.0.1:PORT (default: mt5://)",
    )
    add("--host", help="address to listen on; off this machine only with TLS (default: 127.0.0.1)")
    add("--port", type=int, help=f"0 takes a free one, which the first line of output names (default: {DEFAULT_PORT})")
    add("--folder", type=Path, help="where people, grants and journals are kept (default: mt5_server in btcbot's home folder)")
    add("--journal", type=Path, help="file of the order journal (default: orders.sqlite3 in the folder)")
    add("--guard", type=Path, metavar="FILE", help="TOML file of the guard: its limits, and what it does when the lease lapses")
    add("--clock", metavar="RULE", help="rule of the trade server's clock, such as NY+7 or EET (a twin states its own)")
    add("--tls-cert", type=Path, metavar="FILE", help="certificate chain, PEM")
    add("--tls-key", type=Path, metavar="FILE", help="private key, PEM")
    add("--log-level", choices=["DEBUG", "INFO", "WARNING", "ERROR"], help="default: INFO")
    add("--log-file", type=Path, metavar="FILE", help="also write the log here")
    add("--log-format", choices=["text", "json"], help="json: one object a line (default: text)")
    add("--call-timeout-s", type=float, metavar="SECONDS", help="longest wait for one call of the terminal (default: 60)")
    add("--streams", type=int, metavar="N", help="how many streams at a time (default: 16)")
    add("--origins", metavar="URL,URL", help="by what URLs clients call this server, where a proxy stands in between")
    add("--vault-key", metavar="WHERE", help="key of the vault: env:NAME, file:PATH, keyring:NAME or passphrase-env:NAME")
    add(
        "--token-stdin",
        action="store_true",
        help="simulated terminals on this machine only: the first line of standard input is a token that may do everything, "
        "and the server stops when that input ends",
    )
    add("--version", action="version", version=f"mt5-server {__version__}")
    return parser


def _file_values(file: Path | None) -> tuple[Path | None, dict[str, object]]:
    """Return what the file says, and where it is."""
    from btcbot.core.config import home_folder

    chosen = file or home_folder() / "mt5_server.toml"
    if file is None and not chosen.exists():
        return None, {}
    import tomllib

    try:
        return chosen, dict(tomllib.loads(chosen.read_text(encoding="utf-8")))
    except OSError as error:
        raise BtcbotError(f"{chosen} can't be read ({error.strerror}): name a file that exists and is yours.") from error
    except ValueError as error:
        raise BtcbotError(f'{chosen} is not TOML: {error}. Write lines such as log_level = "INFO".') from error


def _explain(error: "ValidationError", file: Path | None) -> BtcbotError:
    first = error.errors()[0]
    name = str(first["loc"][0])
    if name == "port":
        return BtcbotError(f"{first['input']} is no port: give one between 1 and 65535, or 0 for a free one.")
    if first["type"] == "extra_forbidden":
        return BtcbotError(f"{file}: {name} is no option of the server: mt5-server --help lists them, in a file with _ for each -.")
    return BtcbotError(f"The option {name.replace('_', '-')} can't be {first['input']!r}: {first['msg'].lower()}.")


def _merged(given: argparse.Namespace) -> Config:
    """Put flags, environment and file together."""
    from pydantic import BaseModel, ConfigDict, Field, ValidationError

    from btcbot.core.config import LogFormat, LogLevel, home_folder

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        terminal: str = "mt5://"
        host: str = Field("127.0.0.1", min_length=1)
        port: int = Field(DEFAULT_PORT, ge=0, lt=65536)
        folder: Path | None = None
        journal: Path | None = None
        guard: Path | None = None
        clock: str | None = None
        tls_cert: Path | None = None
        tls_key: Path | None = None
        log_level: LogLevel = "INFO"
        log_file: Path | None = None
        log_format: LogFormat = "text"
        call_timeout_s: float = Field(60.0, gt=0, le=3600)
        streams: int = Field(16, ge=0, le=256)
        origins: str = ""
        vault_key: str | None = None

    file, values = _file_values(given.config)
    folder = Path.cwd() if file is None else file.parent
    for name in ("folder", "journal", "guard", "tls_cert", "tls_key", "log_file"):
        if isinstance(path := values.get(name), str):
            values[name] = folder / Path(path).expanduser()
    names = Options.model_fields
    values |= {name: text for name in names if (text := os.environ.get(f"MT5_SERVER_{name.upper()}"))}
    values |= {name: value for name in names if (value := getattr(given, name)) is not None}
    try:
        found = Options.model_validate(values)
    except ValidationError as error:
        raise _explain(error, file) from None
    home = found.folder or home_folder() / "mt5_server"
    return Config(
        **found.model_dump(exclude={"folder", "journal", "origins"}),
        folder=home,
        journal=found.journal or home / "orders.sqlite3",
        origins=frozenset(filter(None, found.origins.split(","))),
        is_token_on_stdin=given.token_stdin,
    )


def parse(arguments: Sequence[str] | None = None) -> Config:
    """Read the command line, the environment and the file."""
    config = _merged(_parser().parse_args(arguments))
    scheme = urlsplit(config.terminal).scheme
    if scheme not in SCHEMES:
        raise BtcbotError(f"{config.terminal!r} is no terminal that can be served: use mt5:// or twin://?seed=1.")
    if scheme == "twin" and config.clock:
        raise BtcbotError("A simulated terminal has the clock of its profile: leave out --clock, or choose another profile in its URL.")
    if scheme == "mt5" and config.terminal != "mt5://":
        raise BtcbotError(
            "mt5:// takes nothing after it: the terminal of this Windows account is served, with the account it is logged in to."
        )
    return config


def read_token(config: Config) -> str | None:
    """Return the owner's token, None where there is none; it is never an argument, which every user of the machine could read."""
    from btcbot.core.config import SERVER_VARIABLE

    if config.is_token_on_stdin:
        return sys.stdin.readline(4096).rstrip("\r\n")
    return os.environ.get(SERVER_VARIABLE) or None
