"""Child processes by fork (from a warm parent) or exec (from a cold start): lines in, lines out, and an end that is noticed at once."""

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn


class Child:
    """A process that runs `work`, or the command `work`; standard input and output are pipes, the rest goes to `log`."""

    def __init__(self, name: str, work: Callable[[], None] | Sequence[str], log: Path):
        self.name, self.status, self.cpu_s, self._lines, self._rest = name, None, 0.0, list[str](), b""
        read_in, self._input = os.pipe()
        self._output, write_out = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run(work, read_in, write_out, log)
        os.close(read_in)
        os.close(write_out)

    @property
    def is_alive(self) -> bool:
        """Tell whether it still runs."""
        if self.status is None:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            self.cpu_s = used.ru_utime + used.ru_stime
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is None

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        os.write(self._input, line.encode() + b"\n")

    def _read(self, timeout_s: float) -> bool:
        """Take in what it says; False where that has ended, or there is nothing yet."""
        if not select.select([self._output], [], [], timeout_s)[0]:
            return False
        read = os.read(self._output, 1 << 20)
        *lines, self._rest = (self._rest + read).split(b"\n")
        self._lines += [line.decode() for line in lines]
        return bool(read)

    def line(self, timeout_s: float) -> str | None:
        """Return the next line it says; None where it ended or said nothing in time."""
        until = time.monotonic() + timeout_s
        while not self._lines:
            if not self._read(max(0.0, until - time.monotonic())):
                return None
        return self._lines.pop(0)

    def said(self) -> list[str]:
        """Return what it has said and nobody has read yet."""
        while self._read(0.0):
            pass
        lines, self._lines = self._lines, []
        return lines

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False where it still runs."""
        until = time.monotonic() + timeout_s
        while self.is_alive:
            left = until - time.monotonic()
            if left <= 0:
                return False
            if not self._read(min(left, 0.05)):
                time.sleep(0.001)
        return True

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it and wait."""
        if self.is_alive:
            os.kill(self.pid, number)
            if not self.wait(5.0):
                os.kill(self.pid, signal.SIGKILL)
                self.wait(5.0)

    def close(self) -> None:
        """End it and forget it."""
        self.kill()
        os.close(self._output)
        os.close(self._input)


def wait_any(children: Sequence[Child], timeout_s: float) -> bool:
    """Wait until one of `children` has ended."""
    until = time.monotonic() + timeout_s
    while all(child.is_alive for child in children):
        left = until - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(left, 0.003))
    return True


def _run(work: Callable[[], None] | Sequence[str], read_in: int, write_out: int, log: Path) -> NoReturn:
    """Be the child."""
    code = 1
    try:
        opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for have, want in ((read_in, 0), (write_out, 1), (opened, 2)):
            os.dup2(have, want)
        os.closerange(3, 512)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends its children
        if callable(work):
            sys.stdin, sys.stdout, sys.stderr = (
                os.fdopen(0, closefd=False),
                os.fdopen(1, "w", closefd=False),
                os.fdopen(2, "w", closefd=False),
            )
            work()
            code = 0
        else:
            os.execv(work[0], list(work))
    except SystemExit as ending:
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
        code = ending.code if isinstance(ending.code, int) else 0 if ending.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
