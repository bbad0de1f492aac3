"""The way to the worker process: how it is started, asked, waited for, lost and started again."""

import json
import logging
import os
import secrets
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection
from queue import Empty, SimpleQueue
from typing import IO, Literal, Protocol, cast
from urllib.parse import urlsplit

from btcbot.core.errors import BtcbotError
from btcbot.core.log import register_secret
from btcbot.terminal.contract import ERRORS, C
from btcbot.terminal.wire import Json
from mt5_server.worker import KEY_VARIABLE, Host, Reply, without_delay

_log = logging.getLogger(__name__)
State = Literal["up", "starting", "down"]
START_TIMEOUT_S = 120.0  # the terminal starts, logs in, and answers
HANG_S = 300.0  # a native terminal that doesn't answer for so long is given up, and its worker with it
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Gone(Exception):
    """The worker isn't there; `code` is what the package would say."""

    def __init__(self, code: int):
        super().__init__(ERRORS[code])
        self.code = code


class Channel(Protocol):
    """A way to a host."""

    about: dict[str, Json]
    restarts: int
    lost: int

    @property
    def state(self) -> State:
        """Say whether calls are answered."""

    @property
    def busy_s(self) -> float:
        """Return for how long the present call has been running, 0 if there is none; never waits."""

    def exchange(self, kind: str, what: bytes, timeout_s: float) -> Reply:
        """Ask, or raise `Gone`."""

    def look(self) -> None:
        """Do what is due; called every second."""

    def close(self) -> None:
        """Leave the terminal."""


def _message(kind: str, number: int, what: bytes) -> bytes:
    return b'["%s",%d,%s]' % (kind.encode(), number, what)


class LocalChannel:
    """A host in this process, for tests: same requests, same answers, no bound on time."""

    def __init__(self, host: Host):
        self._host, self._number = host, 0
        self._since: float | None = None
        self.about, self.restarts, self.lost = host.about, 0, 0

    state: State = "up"

    @property
    def busy_s(self) -> float:
        """Return for how long the present call has been running."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def exchange(self, kind: str, what: bytes, timeout_s: float) -> Reply:
        """Ask the host."""
        self._number += 1
        self._since = self._since or time.monotonic()
        try:
            return self._host.handle(_message(kind, self._number, what))
        finally:
            self._since = None

    def look(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Leave the terminal."""
        self._host.close()


class PipeChannel:
    """A worker process at the other end of a pipe, started here or by somebody else."""

    def __init__(self, terminal: str, clock: str | None = None, log_level: str = "INFO", *, start_timeout_s: float = START_TIMEOUT_S):
        self._terminal, self._clock, self._log_level = terminal, clock, log_level
        self._start_timeout_s = start_timeout_s
        parts = urlsplit(terminal)
        self._attached = (parts.hostname or "127.0.0.1", parts.port or 0) if parts.scheme == "worker" else None
        self._can_start_again = parts.scheme != "twin"
        self._turn = threading.Lock()  # who holds it talks to the worker
        self._connection: Connection[bytes, bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._number, self._since = 0, cast("float | None", None)
        self._is_closing, self._is_mending = threading.Event(), threading.Lock()
        self.about: dict[str, Json] = {}
        self.restarts = self.lost = 0
        self._open()

    # ---- life of the worker

    def _open(self) -> None:
        """Start a worker or find the one that runs, and connect to it."""
        address: str | tuple[str, int]
        if self._attached is None:
            address, key = self._start()
        else:
            address, key = self._attached, os.environ.get(KEY_VARIABLE, "")
            if len(key) < 16:
                raise BtcbotError(
                    f"The key of the worker at {self._terminal} is missing: put it in the environment variable {KEY_VARIABLE}."
                )
            register_secret(key)
        try:
            connection = Client(address, authkey=key.encode())
            without_delay(connection)
            connection.send_bytes(_message("hello", 0, b"{}"))
            if not connection.poll(self._start_timeout_s):
                raise BtcbotError(f"The worker at {self._terminal} doesn't answer: a call of its terminal may hang.")
            self.about = _read(connection).head
        except (OSError, EOFError, AuthenticationError) as error:
            self._kill()
            raise BtcbotError(
                f"The worker of {self._terminal} can't be reached ({type(error).__name__}): is it running, with the same key?"
            ) from error
        self._connection = connection

    def _start(self) -> tuple[str, str]:
        """Start a worker as a child of this process; its key goes over its standard input."""
        key = secrets.token_hex(32)
        register_secret(key)
        command = [sys.executable, "-m", "mt5_server.worker", "--parent", "--terminal", self._terminal, "--log-level", self._log_level]
        command += ["--clock", self._clock] if self._clock else []
        environment = {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}
        self._process = process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        assert process.stdin is not None
        assert process.stdout is not None
        first = SimpleQueue[bytes]()
        threading.Thread(target=_pump, args=(process.stdout, first), name="worker output", daemon=True).start()
        with suppress(OSError):  # it ended already
            process.stdin.write(key.encode() + b"\n")
            process.stdin.flush()
        try:
            line = first.get(timeout=self._start_timeout_s)
        except Empty:
            self._kill()
            raise BtcbotError(
                f"The terminal {self._terminal} doesn't start within {self._start_timeout_s:g} s: start it by hand once."
            ) from None
        said = json.loads(line) if line else {"error": f"The process of the terminal ended with status {process.wait()}: its log says why."}
        if "error" in said:
            raise BtcbotError(str(said["error"]))
        return str(said["address"]), key

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _lose(self, error: Exception) -> None:
        """Take note that the worker is gone; called by whoever holds the turn."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.close()
        self.lost += 1
        if self._is_closing.is_set():
            return
        code = self._process.poll() if self._process is not None else None
        _log.error("The worker is gone (%s, status %s)", type(error).__name__, code)
        if self._can_start_again:
            threading.Thread(target=self._mend, name="worker restart", daemon=True).start()

    def _mend(self) -> None:
        """Start the worker again, or connect to it again, until that succeeds."""
        with self._is_mending:
            for attempt in range(1_000_000):
                if self._is_closing.wait(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)]):
                    return
                try:
                    self._kill()
                    self._open()
                except BtcbotError as error:
                    _log.warning("%s", error)
                    continue
                self.restarts += 1
                _log.warning("The worker is back")
                return

    @property
    def state(self) -> State:
        """Say whether calls are answered."""
        if self._connection is not None:
            return "up"
        return "starting" if self._can_start_again else "down"

    @property
    def busy_s(self) -> float:
        """Return for how long the present call has been running."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    # ---- talk

    def exchange(self, kind: str, what: bytes, timeout_s: float) -> Reply:
        """Ask the worker; a hang or a death in between is `Gone`."""
        deadline = time.monotonic() + timeout_s
        if not self._turn.acquire(timeout=timeout_s):
            raise Gone(C.RES_E_INTERNAL_FAIL_TIMEOUT)
        is_mine = True
        try:
            connection = self._connection
            if connection is None:
                raise Gone(C.RES_E_INTERNAL_FAIL_SEND)
            self._number += 1
            self._since = time.monotonic()
            try:
                connection.send_bytes(_message(kind, self._number, what))
            except OSError as error:
                self._lose(error)
                raise Gone(C.RES_E_INTERNAL_FAIL_SEND) from None
            try:
                if not connection.poll(max(0.0, deadline - time.monotonic())):
                    is_mine = False
                    threading.Thread(target=self._wait_for_late, args=(connection,), name="late answer", daemon=True).start()
                    raise Gone(C.RES_E_INTERNAL_FAIL_TIMEOUT)
                return _read(connection)
            except (EOFError, OSError) as error:
                self._lose(error)
                raise Gone(C.RES_E_INTERNAL_FAIL_RECEIVE) from None
        finally:
            if is_mine:
                self._since = None
                self._turn.release()

    def _wait_for_late(self, connection: "Connection[bytes, bytes]") -> None:
        """Keep the door shut until the answer that nobody waits for any more is there."""
        try:
            _read(connection)
            _log.warning("A call was answered after %.1f s, when nobody waited for it any more", self.busy_s)
        except (EOFError, OSError) as error:
            self._lose(error)
        finally:
            self._since = None
            self._turn.release()

    def look(self) -> None:
        """Give up a real terminal that hangs: its worker is ended, and a new one started."""
        if self._process is not None and self._can_start_again and self.busy_s > HANG_S:
            _log.error("The terminal hasn't answered for %.0f s: its worker is ended", self.busy_s)
            self._process.kill()

    def close(self) -> None:
        """Let the worker end: it does when its call is answered and its input is closed."""
        self._is_closing.set()
        connection, self._connection = self._connection, None
        process = self._process
        if connection is not None and self._turn.acquire(timeout=1.0):
            connection.close()
        if process is not None:
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()
            with suppress(subprocess.TimeoutExpired):  # one that hangs ends later, by itself
                process.wait(2.0)


SECRET_VARIABLES = frozenset({"BTCBOT_SERVER_TOKEN", KEY_VARIABLE, "BTCBOT_VAULT_KEY"})


def _pump(stream: IO[bytes], first: SimpleQueue[bytes]) -> None:
    with stream:
        first.put(stream.readline())
        for line in stream:
            sys.stderr.write(line.decode("utf-8", "replace"))


def _read(connection: "Connection[bytes, bytes]") -> Reply:
    head, _, body = connection.recv_bytes().partition(b"\n")
    found = cast(dict[str, Json], json.loads(head))
    count = cast(int, found.get("rows", 0))
    return Reply(found, body, [connection.recv_bytes() for _ in range(count)])
