"""What can be chosen when the server starts, and where its token comes from."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from btcbot import __version__
from btcbot.core.config import SERVER_VARIABLE, home_folder
from btcbot.core.errors import BtcbotError

DEFAULT_PORT = 8443


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The options of one run."""

    terminal: str
    host: str
    port: int
    journal: Path
    clock: str | None
    certificate: Path | None
    key: Path | None
    log_level: str
    is_token_on_stdin: bool


def parse(arguments: Sequence[str] | None = None) -> Config:
    """Read the command line."""
    parser = argparse.ArgumentParser("mt5-server", description="Serve a MetaTrader 5 terminal over HTTP.")
    parser.add_argument("--terminal", default="mt5://", metavar="URL", help="mt5:// (on this Windows machine) or twin://?... (simulated)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; off this machine only with TLS")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 takes a free one, which the first line of output names")
    parser.add_argument("--journal", type=Path, help="file of the order journal (default: mt5_server.sqlite3 in btcbot's home folder)")
    parser.add_argument("--clock", metavar="RULE", help="rule of the trade server's clock, such as NY+7 or EET (a twin states its own)")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate chain, PEM")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="private key, PEM")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    parser.add_argument(
        "--token-stdin",
        action="store_true",
        help=f"read the token from the first line of standard input, and stop when it ends (default: from {SERVER_VARIABLE})",
    )
    parser.add_argument("--version", action="version", version=f"mt5-server {__version__}")
    given = parser.parse_args(arguments)
    scheme = urlsplit(given.terminal).scheme
    if scheme not in ("mt5", "twin"):
        raise BtcbotError(f"{given.terminal!r} is no terminal that can be served: use mt5:// or twin://?seed=1.")
    if scheme == "twin" and given.clock:
        raise BtcbotError("A simulated terminal has the clock of its profile: leave out --clock, or choose another profile in its URL.")
    if not 0 <= given.port < 65536:
        raise BtcbotError(f"{given.port} is no port: give one between 1 and 65535, or 0 for a free one.")
    return Config(
        terminal=given.terminal,
        host=given.host,
        port=given.port,
        journal=given.journal or home_folder() / "mt5_server.sqlite3",
        clock=given.clock,
        certificate=given.tls_cert,
        key=given.tls_key,
        log_level=given.log_level,
        is_token_on_stdin=given.token_stdin,
    )


def read_token(config: Config) -> str:
    """Return the token; it is never an argument, which every user of the machine could read."""
    if config.is_token_on_stdin:
        return sys.stdin.readline(4096).rstrip("\r\n")
    if token := os.environ.get(SERVER_VARIABLE):
        return token
    raise BtcbotError(f"The server has no token: put one in the environment variable {SERVER_VARIABLE}, or give --token-stdin.")
