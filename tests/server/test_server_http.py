"""Client and server over a real port: answers that get lost, keys that collide, servers that aren't ours, and TLS."""

import datetime as dt
import http.server
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from conftest import serving
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fake_terminal import ORDER, TOKEN, FakeTwin

from btcbot.core.errors import BtcbotError, TerminalUnreachable
from btcbot.terminal.contract import request_from
from btcbot.terminal.journal import OrderJournal, order_key
from btcbot.terminal.remote import RemoteTerminal, SendOutcome
from mt5_server.server import check_transport, listen

KEY = order_key("test")
Serve = Callable[..., str]


@contextmanager
def losing(url: str, path: str, count: int) -> Iterator[str]:
    """Yield the URL of a proxy that passes everything on, but loses the first `count` answers to requests for `path`."""
    target = urlsplit(url)
    left = [count]

    class Proxy(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with socket.create_connection((target.hostname, target.port)) as there:
                head = f"{self.command} {self.path} HTTP/1.1\r\nConnection: close\r\n"
                head += "".join(f"{name}: {value}\r\n" for name, value in self.headers.items() if name != "Connection")
                there.sendall(head.encode() + b"\r\n" + body)
                answer = b"".join(iter(lambda: there.recv(65536), b""))
            if self.path == path and left[0]:
                left[0] -= 1
            else:
                self.wfile.write(answer)
            self.close_connection = True

        do_GET = do_POST = pass_on

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def answering(*answers: tuple[int, str, bytes]) -> Iterator[str]:
    """Yield the URL of a server that gives these answers (status, content type, body), the last one again and again."""
    left = list(answers)

    class Stranger(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, kind, body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


# ---- lost answers


def test_a_lost_answer_to_an_order_executes_it_once(serve: Serve, terminal: FakeTwin) -> None:
    with losing(serve(terminal), "/v1/order", 2) as url:
        found = RemoteTerminal(url, TOKEN).send(ORDER, KEY)
        assert (found.outcome, found.is_replay) == ("done", True)
        assert found.result is not None
        assert len(terminal.executed) == 1


def test_every_answer_lost(serve: Serve, terminal: FakeTwin) -> None:
    with losing(serve(terminal), "/v1/order", 1000) as url:
        client = RemoteTerminal(url, TOKEN, timeout_s=5.0, retry_s=0.3)
        assert client.send(ORDER, KEY) == SendOutcome("unknown", None, client.last_error())
        assert client.last_error()[0] == -10002
        assert len(terminal.executed) == 1


def test_plain_order_send_survives_a_lost_answer(serve: Serve, terminal: FakeTwin) -> None:
    with losing(serve(terminal), "/v1/order", 1) as url:
        client = RemoteTerminal(url, TOKEN)
        assert client.initialize()
        assert [client.order_send(ORDER).order for _ in range(2)] == [1, 2]  # two orders, since each has a key of its own


def test_no_bar_is_skipped_by_a_lost_answer(serve: Serve, terminal: FakeTwin) -> None:
    with losing(serve(terminal), "/v1/advance", 1) as url:
        client = RemoteTerminal(url, TOKEN)
        assert [client.advance(1, [("symbols_total", (), {})]) for _ in range(3)] == [(1, [1]), (1, [2]), (1, [3])]


def test_a_failed_step_is_asked_for_again(serve: Serve, terminal: FakeTwin) -> None:
    with losing(serve(terminal), "/v1/advance", 1) as url:
        client = RemoteTerminal(url, TOKEN, retry_s=0.0)
        with pytest.raises(TerminalUnreachable, match="broke"):
            client.advance(2)
        client.shutdown()
        assert client.initialize()  # which doesn't make the client forget
        with pytest.raises(BtcbotError, match="ask for that one again"):
            client.advance(1)
        assert client.advance(2) == (2, [])
        assert terminal.now == 2


def test_reading_again_after_a_lost_answer(serve: Serve, terminal: FakeTwin) -> None:
    with losing(serve(terminal), "/v1/call", 2) as url:
        client = RemoteTerminal(url, TOKEN)
        assert client.initialize()
        assert client.symbols_total() == 0


# ---- slow answers


def test_an_order_that_takes_longer_than_the_time_limit(serve: Serve, terminal: FakeTwin) -> None:
    terminal.before_order = lambda: time.sleep(0.6)
    found = RemoteTerminal(serve(terminal), TOKEN, timeout_s=0.2, retry_s=5.0).send(ORDER, KEY)
    assert (found.outcome, found.is_replay) == ("done", True)
    assert len(terminal.executed) == 1


def test_an_order_that_takes_too_long(serve: Serve, terminal: FakeTwin) -> None:
    finish = threading.Event()
    terminal.before_order = lambda: finish.wait(10)
    client = RemoteTerminal(serve(terminal), TOKEN, timeout_s=0.2, retry_s=0.2)
    assert client.send(ORDER, KEY).outcome == "unknown"
    finish.set()
    deadline = time.monotonic() + 10
    while client.send(ORDER, KEY).outcome == "unknown" and time.monotonic() < deadline:
        pass
    assert client.send(ORDER, KEY).outcome == "done"
    assert len(terminal.executed) == 1


def test_a_call_that_takes_too_long_is_not_repeated(serve: Serve, terminal: FakeTwin) -> None:
    asked = []
    terminal.symbols_total = lambda: (asked.append(1), time.sleep(0.5))
    client = RemoteTerminal(serve(terminal), TOKEN, timeout_s=0.2)
    assert client.initialize()
    assert client.symbols_total() is None
    assert client.last_error()[0] == -10005
    assert len(asked) == 1


def test_many_who_wait_for_the_terminal_keep_nobody_else_waiting(serve: Serve, terminal: FakeTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mt5_server.app.IN_FLIGHT", 5)
    finish, statuses = threading.Event(), list[int]()
    terminal.symbols_total = lambda: finish.wait(20) and 1
    url, headers = serve(terminal), {"Authorization": f"Bearer {TOKEN}"}

    def work() -> None:
        body = {"calls": [["symbols_total"]]}
        statuses.append(requests.post(f"{url}/v1/call", json=body, headers=headers, timeout=30).status_code)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while len(statuses) < 3 and time.monotonic() < deadline:
        began = time.monotonic()
        assert requests.get(f"{url}/health", timeout=5).status_code == 200
        assert time.monotonic() - began < 1
    assert statuses == [503] * 3
    finish.set()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 5 + [503] * 3
    work()
    assert statuses[-1] == 200


# ---- one key, many senders


def test_two_clients_with_one_key(serve: Serve, terminal: FakeTwin) -> None:
    url, found, both = serve(terminal), [], threading.Barrier(2)
    terminal.before_order = lambda: time.sleep(0.05)
    epoch = RemoteTerminal(url, TOKEN).lease()

    def work() -> None:
        client = RemoteTerminal(url, TOKEN)
        client.epoch = epoch
        both.wait()
        found.append(client.send(ORDER, KEY))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.outcome for each in found] == ["done", "done"]
    assert sorted(each.is_replay for each in found) == [False, True]
    assert found[0].result == found[1].result
    assert len(terminal.executed) == 1


def test_threads_that_share_a_client(serve: Serve, terminal: FakeTwin) -> None:
    client = RemoteTerminal(serve(terminal), TOKEN)
    assert client.initialize()
    ticks: list[object] = []
    threads = [threading.Thread(target=lambda: ticks.extend(client.symbol_info_tick("BTCUSD") for _ in range(10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ticks) == 40
    assert None not in ticks


# ---- restarts


def test_a_server_started_anew(terminal: FakeTwin, journal: OrderJournal) -> None:
    with serving(terminal, journal) as url:
        client = RemoteTerminal(url, TOKEN)
        client.advance()
        client.send(ORDER, KEY)
    with serving(FakeTwin(), journal) as url:
        again = RemoteTerminal(url, TOKEN)
        assert again.send(ORDER, KEY).is_replay  # the journal outlives the server
        client._transport.url = url
        with pytest.raises(BtcbotError, match="started anew"):
            client.advance()
        assert client.initialize()
        assert client.advance() == (1, [])
    assert len(terminal.executed) == 1


def test_an_order_left_by_a_crash_is_unknown_at_once(serve: Serve, terminal: FakeTwin, journal: OrderJournal) -> None:
    journal.begin(KEY, dict(request_from(ORDER)._asdict()))
    journal.mark_sent(KEY, None)
    url, began = serve(terminal), time.monotonic()
    assert RemoteTerminal(url, TOKEN).send(ORDER, KEY).outcome == "unknown"
    assert time.monotonic() - began < 5
    journal.settle(KEY, "not_done", "looked for everywhere")
    assert RemoteTerminal(url, TOKEN).send(ORDER, KEY).outcome == "not_done"
    assert not terminal.executed


# ---- servers that aren't ours


def test_who_answers_is_checked() -> None:
    page, session = (200, "text/html", b"<html>"), {"api": 99, "version": "9.9"}
    cases = {
        "is no mt5_server|no JSON": (page,),
        "perhaps no mt5_server": ((404, "text/html", b"nothing here"),),
        "speaks API 99": ((200, "application/json", json.dumps(session).encode()),),
        "redirects": ((302, "text/html", b""),),
    }
    for word, answers in cases.items():
        with answering(*answers) as url:
            client = RemoteTerminal(url, TOKEN)
            with pytest.raises(BtcbotError, match=word):
                client.open()
            assert not client.initialize()
            assert client.last_error()[0] in (-5, -10000)


def test_what_a_proxy_in_between_says_is_no_outcome() -> None:
    done = {"key": KEY, "outcome": "done", "replayed": False, "value": None, "error": [1, "Success"]}
    good, bad = (200, "application/json", json.dumps(done).encode()), (502, "text/html", b"bad gateway")
    with answering(bad, bad, good) as url:
        assert RemoteTerminal(url, TOKEN).send(ORDER, KEY).outcome == "done"
    with answering(bad) as url:
        assert RemoteTerminal(url, TOKEN, timeout_s=0.1, retry_s=0.1).send(ORDER, KEY).outcome == "unknown"
    with answering((200, "text/html", b"<html>")) as url:
        found = RemoteTerminal(url, TOKEN).send(ORDER, KEY)
        assert (found.outcome, found.error[0]) == ("unknown", -10000)
    with answering((503, "application/problem+json", b'{"detail": "full", "outcome": "not_done"}')) as url:
        assert RemoteTerminal(url, TOKEN).send(ORDER, KEY).outcome == "not_done"
    with answering((500, "application/problem+json", b'{"detail": "failed", "outcome": "unknown"}')) as url:
        assert RemoteTerminal(url, TOKEN).send(ORDER, KEY).outcome == "unknown"


def test_nonsense_where_an_answer_should_be() -> None:
    said = {"api": 1, "version": "1", "session": "s", "clock": None, "lock_step": True, "time_ms": 1}
    with answering((200, "application/json", json.dumps(said).encode()), (200, "application/json", b"[]")) as url:
        client = RemoteTerminal(url, TOKEN)
        assert client.initialize()
        assert client.symbols_total() is None
        assert client.last_error()[0] == -10000
        assert client.copy_rates_from_pos("BTCUSD", 1, 0, 1) is None
        for call in (client.advance, lambda: client.batch([("version", (), {})])):
            with pytest.raises(BtcbotError, match="can't read"):
                call()
        with pytest.raises(BtcbotError, match="--clock"):
            _ = client.clock


# ---- transport


def raw(url: str, text: str) -> str:
    """Return the first answer to what is sent as it stands."""
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=10) as there:
        there.sendall(text.encode())
        return there.recv(65536).decode()


def test_what_the_web_server_refuses_by_itself(serve: Serve, terminal: FakeTwin) -> None:
    url = serve(terminal)
    head = f"POST /v1/call HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
    assert raw(url, head + "Transfer-Encoding: chunked\r\n\r\n").startswith("HTTP/1.1 411")
    assert raw(url, head + "Content-Length: 9000000\r\n\r\n").startswith("HTTP/1.1 413")
    assert raw(url, head + "Content-Length: many\r\n\r\n").startswith("HTTP/1.1 400")
    assert raw(url, head + f"X-Long: {'x' * 20_000}\r\n\r\n").startswith("HTTP/1.1 413")
    answer = raw(url, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith("HTTP/1.1 200")
    assert "Server: mt5-server\r\n" in answer


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Return a certificate for 127.0.0.1 that signed itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    built = x509.CertificateBuilder(name, name, key.public_key(), 1, now - dt.timedelta(days=1), now + dt.timedelta(days=1))
    built = built.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = built.sign(key, hashes.SHA256())
    paths = tmp_path / "certificate.pem", tmp_path / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem = serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, pem, serialization.NoEncryption()))
    return paths


def test_tls(serve: Serve, terminal: FakeTwin, files: tuple[Path, Path]) -> None:
    url = serve(terminal, *files)
    assert url.startswith("https://127.0.0.1:")
    client = RemoteTerminal(url, TOKEN, ca_file=files[0])
    assert client.initialize(), client.last_error()
    assert client.send(ORDER, KEY).outcome == "done"
    stranger = RemoteTerminal(url, TOKEN, retry_s=0.0)
    assert not stranger.initialize()
    assert "isn't trusted" in stranger.last_error()[1]


def test_what_can_not_be_listened_on(files: tuple[Path, Path], tmp_path: Path) -> None:
    app = None
    for host in ("192.168.1.5", "::", "broker.example"):
        with pytest.raises(BtcbotError, match="Plain HTTP"):
            listen(app, host, 0)
        check_transport(host, *files)
    with pytest.raises(BtcbotError, match="give both"):
        listen(app, "127.0.0.1", 0, files[0], None)
    with pytest.raises(BtcbotError, match="can't be used"):
        listen(app, "127.0.0.1", 0, files[0], files[0])
    with pytest.raises(BtcbotError, match="can't be used"):
        listen(app, "127.0.0.1", 0, tmp_path / "none.pem", files[1])
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BtcbotError, match="can't be opened"):
        listen(app, "127.0.0.1", taken.getsockname()[1])


def test_a_proxy_of_the_environment_does_not_get_the_token(serve: Serve, terminal: FakeTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert RemoteTerminal(serve(terminal), TOKEN).initialize()


def test_latency_is_reported(serve: Serve, terminal: FakeTwin) -> None:
    """Print the time of a step with four calls; a number on a shared machine proves nothing, so it is not judged."""
    client, spent = RemoteTerminal(serve(terminal), TOKEN), []
    calls = [
        ("symbol_info_tick", ("BTCUSD",), {}),
        ("copy_rates_from_pos", ("BTCUSD", 1, 0, 2), {}),
        ("symbols_total", (), {}),
        ("last_error", (), {}),
    ]
    for _ in range(200):
        began = time.perf_counter()
        client.advance(1, calls)
        spent.append(time.perf_counter() - began)
    print(f"\nadvance with four calls, server in a thread: median {statistics.median(spent) * 1000:.2f} ms")


def test_an_order_to_a_server_that_is_gone_does_not_wait_for_an_answer(terminal: FakeTwin, journal: OrderJournal) -> None:
    with serving(terminal, journal) as url:
        client = RemoteTerminal(url, TOKEN, timeout_s=30.0, retry_s=0.3)
        assert client.initialize()
    began = time.monotonic()
    assert client.send(ORDER, KEY).outcome in ("not_done", "unknown")
    assert time.monotonic() - began < 5
