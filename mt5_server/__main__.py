"""The command `mt5-server`: its first line of output is JSON with the URL, everything else goes to the log on stderr."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from btcbot import __version__
from btcbot.core.errors import BtcbotError
from btcbot.core.log import configure_logging, register_secret
from btcbot.market.clock import server_clock
from btcbot.terminal.connect import connect
from btcbot.terminal.contract import Terminal
from btcbot.terminal.journal import OrderJournal
from mt5_server.app import create_app
from mt5_server.auth import hash_token
from mt5_server.config import Config, parse, read_token
from mt5_server.server import RunningServer, check_transport, listen

GRACE_S = 0.7  # how long a call may still run when the parent process is gone


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


def open_terminal(config: Config) -> tuple[Terminal, str | None]:
    """Return the connected terminal and the rule of its clock."""
    terminal = connect(config.terminal)
    if not terminal.initialize():
        code, text = terminal.last_error()
        raise BtcbotError(
            f"The terminal {config.terminal} doesn't answer ({code}: {text}): start it, log in, and allow algorithmic trading."
        )
    profile = getattr(terminal, "profile", None)
    rule = config.clock if profile is None else str(profile.clock)
    return terminal, None if rule is None else server_clock(rule).rule


def serve_until(stopping: threading.Event, server: RunningServer) -> None:
    """Serve until `stopping` is set, SIGTERM or Ctrl-C."""

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    thread = threading.Thread(target=server.serve, name="http", daemon=True)
    thread.start()
    while thread.is_alive() and not stopping.wait(0.2):  # Windows delivers no signal to an endless wait
        pass
    server.stop()
    thread.join()


def run(config: Config) -> None:
    """Serve one terminal from start to stop."""
    check_transport(config.host, config.certificate, config.key)
    stopping = threading.Event()
    token = read_token(config)
    if config.is_token_on_stdin:
        stop_with_parent(stopping)
    token_hash = hash_token(token)
    register_secret(token)
    configure_logging(config.log_level)
    with OrderJournal(config.journal) as journal:
        terminal, rule = open_terminal(config)
        app = create_app(terminal, token_hash, journal, rule)
        server, url = listen(app, config.host, config.port, config.certificate, config.key)
        print(json.dumps({"url": url, "pid": os.getpid(), "version": __version__}), flush=True)
        serve_until(stopping, server)
        terminal.shutdown()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        run(parse(arguments))
    except BtcbotError as error:
        print(f"mt5-server: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
