"""The command `mt5-server`: its first line of output is JSON with the URL, everything else goes to the log on stderr."""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from btcbot.core.errors import BtcbotError
from mt5_server.config import Config, parse, read_token

if TYPE_CHECKING:
    from filelock import FileLock

    from mt5_server.server import RunningServer

LOCK_S = 2.0  # how long a server before this one may still take to end
GRACE_S = 0.7  # how long a call may still run when the parent process is gone
COMMANDS = ("user", "grant", "token")


def stop_with_parent(stopping: threading.Event) -> None:
    """Set `stopping` when standard input ends, and leave for good soon after.

    The parent holds the other end of the pipe, so it ends however the parent does, also by SIGKILL. A call that hangs must not keep
    an orphan alive: an order in it is in the journal, and the next server finds it there.
    """

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 4096):
                pass
        stopping.set()
        time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def check_token(config: Config, token: str | None, is_simulated: bool) -> None:
    """Refuse a token that may do everything where money or the network is in reach."""
    from btcbot.terminal.wire import is_loopback

    if token is None:
        return
    if not is_simulated:
        raise BtcbotError(
            "A real terminal isn't served to whoever holds a token: leave out --token-stdin and BTCBOT_SERVER_TOKEN, add a person with "
            "mt5-server user add NAME, and give bots a grant (mt5-server grant issue)."
        )
    if not is_loopback(config.host):
        raise BtcbotError(
            f"A token that may do everything isn't for the network: listen on 127.0.0.1 instead of {config.host}, or add people."
        )


def only_one(journal: Path) -> "FileLock":
    """Return the lock on a journal: two servers on one would hand out the same epochs. It goes with the process, however that ends."""
    from filelock import FileLock, Timeout

    journal.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{journal}.lock")
    try:
        return lock.acquire(timeout=LOCK_S).lock
    except Timeout:
        raise BtcbotError(f"Another server uses the journal {journal}: stop it, or give this one a --journal of its own.") from None


def serve_until(stopping: threading.Event, server: "RunningServer") -> None:
    """Serve until `stopping` is set, SIGTERM or Ctrl-C."""

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    thread = threading.Thread(target=server.serve, name="http", daemon=True)
    thread.start()
    while thread.is_alive() and not stopping.wait(0.2):  # Windows delivers no signal to an endless wait
        pass


def run(config: Config) -> None:
    """Serve one terminal from start to stop."""
    from btcbot import __version__
    from btcbot.core.log import configure_logging, register_secret
    from btcbot.terminal.journal import OrderJournal
    from mt5_server.app import create_app
    from mt5_server.assembly import Background, assemble
    from mt5_server.auth import Auth, AuthSettings, hash_token
    from mt5_server.gate import Gate
    from mt5_server.guard import read_settings
    from mt5_server.server import check_transport, listen

    check_transport(config.host, config.tls_cert, config.tls_key)
    stopping = threading.Event()
    token = read_token(config)
    if config.is_token_on_stdin:
        stop_with_parent(stopping)
    if token is not None:
        hash_token(token)
        register_secret(token)
    configure_logging(config.log_level, config.log_file, config.log_format)
    is_attached = config.terminal.startswith("worker:")
    if not is_attached:
        check_token(config, token, config.is_simulated)
    chosen = None if config.guard is None else read_settings(config.guard)
    settings = AuthSettings(folder=None if token else config.folder, vault_key=config.vault_key, origins=config.origins)
    with ExitStack() as stack:
        stack.callback(only_one(config.journal).release)
        journal = stack.enter_context(OrderJournal(config.journal))
        auth = stack.enter_context(Auth.open(settings, token))
        if token is None and not auth.has_people:
            raise BtcbotError(
                f"Nobody could log in: add a person with mt5-server user add NAME --folder {config.folder}. A simulated terminal on this "
                "machine also takes a token, from --token-stdin or the environment variable BTCBOT_SERVER_TOKEN."
            )
        gate = Gate.open(config.terminal, config.clock, config.call_timeout_s, config.log_level)
        stack.callback(gate.close)
        if is_attached:
            check_token(config, token, gate.is_simulated)
        beside = config.journal.with_name(f"{config.journal.stem}-guard.sqlite3")
        parts = assemble(gate, auth, journal, beside, guard_settings=chosen, streams=config.streams)
        server, url = listen(create_app(parts), config.host, config.port, config.tls_cert, config.tls_key, streams=config.streams)
        stack.enter_context(Background(parts))
        print(json.dumps({"url": url, "pid": os.getpid(), "version": __version__}), flush=True)
        serve_until(stopping, server)
        parts.hub.close()
        server.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; what fails says nothing of a secret."""
    from btcbot.core.log import redact, register_environment

    given = sys.argv[1:] if arguments is None else list(arguments)
    register_environment(os.environ)
    try:
        if given and given[0] in COMMANDS:
            from mt5_server import auth_cli

            return auth_cli.main(given)
        run(parse(given))
    except BtcbotError as error:
        print(f"mt5-server: {redact(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception:
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
