"""The web server around the app: cheroot.

It is made for production, speaks TLS by itself, runs on Windows and needs no compiler, which together rules out the others:
waitress has no TLS, gunicorn and uWSGI no Windows, and Flask's own server is for development. The terminal answers one call
at a time anyway: threads are there so that who waits for it keeps nobody else waiting. The app lets no more than `app.IN_FLIGHT`
requests wait, the rest of the threads is for `/health`, for signing in, and for refusing what is wrong. Each stream takes a thread
for as long as it lasts, so those come on top. Connections stay open between requests, with Nagle's algorithm off (cheroot's
default): otherwise a small answer waits 40 ms for an acknowledgement.
"""

import logging
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

from cheroot.server import HTTPConnection, HTTPRequest
from cheroot.ssl.builtin import BuiltinSSLAdapter
from cheroot.wsgi import Server
from flask import Flask

from btcbot.core.errors import BtcbotError
from btcbot.terminal.wire import is_loopback

_log = logging.getLogger(__name__)
THREADS = 32
PATIENCE_S = 10  # for what a client sends or takes next; then it is dropped
PIECE = 1 << 18  # bytes


class RunningServer(Protocol):
    """The part of a web server that is used here."""

    def serve(self) -> None:
        """Answer until `stop` is called."""

    def stop(self) -> None:
        """Finish what is being answered and close the port."""


class _Request(HTTPRequest):
    """A request whose length is known before it is read, so that none can hide behind another one that was refused unread."""

    def read_request_headers(self) -> bool:
        """Read the headers and refuse a body in chunks, which nobody needs here."""
        read: Callable[[], bool] = super().read_request_headers
        if not read():
            return False
        if self.chunked_read:
            respond: Callable[[str, str], None] = self.simple_response
            respond("411 Length Required", "Send Content-Length.")
        return not self.chunked_read


class _Writer:
    """What an answer is written to: the socket itself, because cheroot's own copies the rest again after each part that was taken.

    A client that takes nothing of a piece for as long as the server's time limit is dropped.
    """

    def __init__(self, sock: socket.socket):
        self._sock = sock
        self.bytes_written = 0

    def write(self, data: bytes) -> int:
        """Send all of `data`."""
        view = memoryview(data)
        for place in range(0, len(data), PIECE):
            self._sock.sendall(view[place : place + PIECE])
        self.bytes_written += len(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""

    def close(self) -> None:
        """Do nothing: the connection closes its socket."""


class _Connection(HTTPConnection):
    RequestHandlerClass = _Request

    def __init__(self, server: Server, sock: socket.socket, makefile: Callable[..., object]):
        super().__init__(server, sock, makefile)
        self.wfile = _Writer(sock)


class _Server(Server):
    """cheroot's server, with what it has to say sent to the log."""

    ConnectionClass = _Connection

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        """Log `msg`."""
        _log.log(level, "%s", msg, exc_info=traceback)


def check_transport(host: str, certificate: Path | None, key: Path | None) -> None:
    """Refuse what would send the token in the clear, or half a pair of files."""
    if (certificate is None) != (key is None):
        raise BtcbotError("TLS needs a certificate and its key: give both --tls-cert and --tls-key.")
    if certificate is None and not is_loopback(host):
        raise BtcbotError(f"Plain HTTP on {host} would show the token to the network: give --tls-cert and --tls-key, or --host 127.0.0.1.")


def listen(
    app: Flask, host: str, port: int, certificate: Path | None = None, key: Path | None = None, *, streams: int = 0
) -> tuple[RunningServer, str]:
    """Open `port` (0: any that is free) and return the server and its URL."""
    check_transport(host, certificate, key)
    server = _Server((host.strip("[]"), port), app, numthreads=THREADS + streams, server_name="mt5-server", timeout=PATIENCE_S)
    server.expiration_interval = 0.1  # s; also how long `stop` may take to be noticed
    server.max_request_header_size = 1 << 14
    try:
        if certificate is not None and key is not None:
            server.ssl_adapter = BuiltinSSLAdapter(str(certificate), str(key))
    except (OSError, ssl.SSLError) as error:
        raise BtcbotError(f"The certificate {certificate} or its key {key} can't be used: {error}.") from error
    try:
        server.prepare()
    except OSError as error:
        raise BtcbotError(f"Port {port} of {host} can't be opened ({error}): choose another --port, or 0 for a free one.") from error
    shown = f"[{host.strip('[]')}]" if ":" in host else host
    scheme = "https" if certificate else "http"
    return cast(RunningServer, server), f"{scheme}://{shown}:{server.socket.getsockname()[1]}"
