"""What bots may do, their short-lived tokens, their orders of the day, and the tokens for reading metrics: one small database."""

import json
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from btcbot.core.database import open_database
from btcbot.core.errors import BtcbotError
from btcbot.security.files import keep_private
from btcbot.security.grants import DAY_MS, Grant, new_grant
from btcbot.security.keys import thumbprint
from btcbot.security.throttle import transaction
from btcbot.security.users import token_hash

GRANT_PREFIX: Final = "btg_"
METRICS_PREFIX: Final = "btm_"
_SELECT: Final = "SELECT limits, public, revoked_ms FROM grants "
_STEPS: Final = (
    (
        "CREATE TABLE grants (id TEXT PRIMARY KEY, public TEXT NOT NULL, limits TEXT NOT NULL, revoked_ms INTEGER) STRICT",
        "CREATE INDEX grants_by_key ON grants (public)",
        "CREATE TABLE tokens (hash BLOB PRIMARY KEY, grant_id TEXT NOT NULL REFERENCES grants, ends_ms INTEGER NOT NULL) STRICT",
        "CREATE TABLE orders (grant_id TEXT NOT NULL, day INTEGER NOT NULL, key TEXT NOT NULL, PRIMARY KEY (grant_id, day, key)) "
        "STRICT, WITHOUT ROWID",
        "CREATE TABLE readers (name TEXT PRIMARY KEY, hash BLOB NOT NULL UNIQUE, created_ms INTEGER NOT NULL) STRICT",
    ),
)


@dataclass(frozen=True, slots=True)
class Held:
    """A grant, the key it belongs to, and when it was revoked."""

    grant: Grant
    public: str
    revoked_ms: int | None


def magic_ranges(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Read magics as people write them: `7`, `1000-1999`."""
    found = []
    for text in texts:
        match = re.fullmatch(r"(\d{1,19})(?:-(\d{1,19}))?", text.strip(), re.ASCII)
        if not match:
            raise BtcbotError(f"{text[:40]!r} is neither a magic nor a range of them: write 7 or 1000-1999.")
        found.append((int(match[1]), int(match[2] or match[1])))
    return found


def magic_texts(grant: Grant) -> list[str]:
    """Write the magics of a grant as people do."""
    return [str(first) if first == last else f"{first}-{last}" for first, last in grant.magics]


def _to_text(grant: Grant) -> str:
    return json.dumps({**asdict(grant), "roles": sorted(grant.roles)})


def _from_text(text: str) -> Grant:
    fields: dict[str, Any] = json.loads(text)
    magics = tuple((first, last) for first, last in fields["magics"])
    return Grant(**{**fields, "symbols": tuple(fields["symbols"]), "magics": magics, "roles": frozenset(fields["roles"])})


class Grants:
    """The grants of one server.

    Every question goes to the database, which answers in some ten microseconds: a revocation by another process counts at once.
    """

    def __init__(self, path: Path, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000):
        if str(path) != ":memory:":
            keep_private(path)
        self._connection: sqlite3.Connection = open_database(path, "list of grants", _STEPS)
        self._lock = threading.RLock()
        self._now_ms = now_ms

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def _write(self, query: str, *values: object) -> int:
        with self._lock:
            return self._connection.execute(query, values).rowcount

    def _held(self, query: str, *values: object) -> list[Held]:
        return [Held(_from_text(text), public, revoked_ms) for text, public, revoked_ms in self._rows(query, *values)]

    def issue(
        self,
        public: str,
        issued_by: str,
        *,
        name: str,
        account: int,
        symbols: Sequence[str],
        magics: Sequence[tuple[int, int]],
        volume: float,
        orders_a_day: int,
        days: float,
        roles: Sequence[str],
    ) -> Grant:
        """Keep a new grant for a bot's key."""
        print_, limits = thumbprint(public), (account, symbols, magics, volume, orders_a_day, days, roles)
        grant = new_grant(f"g-{secrets.token_hex(4)}", name, print_, *limits, issued_by, self._now_ms())
        self._write("INSERT INTO grants VALUES (?, ?, ?, NULL)", grant.id, public.strip(), _to_text(grant))
        return grant

    def one(self, id: str) -> Held | None:
        """Return a grant by its id."""
        found = self._held(_SELECT + "WHERE id = ?", id)
        return found[0] if found else None

    def everything(self) -> list[Held]:
        """Return all grants, the newest last."""
        return self._held(_SELECT + "ORDER BY rowid")

    def of_key(self, public: str) -> list[Held]:
        """Return the grants of a key, the newest last."""
        return self._held(_SELECT + "WHERE public = ? ORDER BY rowid", public)

    def revoke(self, id: str) -> bool:
        """End a grant and all its tokens at once; say whether there was one."""
        with self._lock, transaction(self._connection):
            self._connection.execute("DELETE FROM tokens WHERE grant_id = ?", (id,))
            update = "UPDATE grants SET revoked_ms = coalesce(revoked_ms, ?) WHERE id = ?"
            return self._connection.execute(update, (self._now_ms(), id)).rowcount == 1

    def new_token(self, grant: Grant, life_ms: int) -> tuple[str, int]:
        """Return a token of a grant and its end; the token is kept nowhere."""
        token, now_ms = GRANT_PREFIX + secrets.token_urlsafe(32), self._now_ms()
        ends_ms = min(now_ms + life_ms, grant.reduce_until_ms)
        with self._lock, transaction(self._connection):
            self._connection.execute("DELETE FROM tokens WHERE ends_ms <= ?", (now_ms,))
            self._connection.execute("INSERT INTO tokens VALUES (?, ?, ?)", (token_hash(token), grant.id, ends_ms))
        return token, ends_ms

    def of_token(self, hashed: bytes) -> Held | None:
        """Return the grant of a token that is still good."""
        where = "WHERE id = (SELECT grant_id FROM tokens WHERE hash = ? AND ends_ms > ?)"
        found = self._held(_SELECT + where, hashed, self._now_ms())
        return found[0] if found else None

    def end_token(self, hashed: bytes) -> None:
        """End one token."""
        self._write("DELETE FROM tokens WHERE hash = ?", hashed)

    def count_order(self, grant: Grant, key: str) -> bool:
        """Count an order for the day, once for each key; say whether the grant allows it."""
        day = self._now_ms() // DAY_MS
        with self._lock, transaction(self._connection):
            ask = self._connection.execute
            if ask("SELECT 1 FROM orders WHERE grant_id = ? AND day >= ? AND key = ?", (grant.id, day - 1, key)).fetchone():
                return True
            count: int = ask("SELECT count(*) FROM orders WHERE grant_id = ? AND day = ?", (grant.id, day)).fetchone()[0]
            if count >= grant.orders_a_day:
                return False
            ask("DELETE FROM orders WHERE day < ?", (day - 2,))
            ask("INSERT INTO orders VALUES (?, ?, ?)", (grant.id, day, key))
        return True

    def new_reader(self, name: str) -> str:
        """Return a token that reads metrics and nothing else; it is kept nowhere."""
        if not re.fullmatch(r"[a-z][a-z0-9._-]{0,31}", name):
            raise BtcbotError(f"{name!r} is no name of a token: use up to 32 small letters, digits and . _ - and start with a letter.")
        token = METRICS_PREFIX + secrets.token_urlsafe(32)
        try:
            self._write("INSERT INTO readers VALUES (?, ?, ?)", name, token_hash(token), self._now_ms())
        except sqlite3.IntegrityError as error:
            raise BtcbotError(f"There is a token {name} already: choose another name, or revoke it first.") from error
        return token

    def readers(self) -> list[tuple[str, int]]:
        """Return the name of each metrics token and when it was made."""
        return [(str(name), int(made)) for name, made in self._rows("SELECT name, created_ms FROM readers ORDER BY name")]

    def reader(self, hashed: bytes) -> str | None:
        """Return the name of a metrics token."""
        found = self._rows("SELECT name FROM readers WHERE hash = ?", hashed)
        return str(found[0][0]) if found else None

    def revoke_reader(self, name: str) -> bool:
        """End a metrics token at once; say whether there was one."""
        return self._write("DELETE FROM readers WHERE name = ?", name) == 1
