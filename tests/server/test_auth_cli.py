"""The commands for people, grants and tokens, at the machine itself."""

import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyotp
import pytest

from btcbot.security import warden
from btcbot.security.keys import make_key
from btcbot.security.passwords import Cost
from btcbot.security.unlocking import vault_key
from btcbot.security.vault import Vault
from mt5_server import auth_cli
from mt5_server.auth import Auth, AuthSettings

PASSWORD = "correct horse battery staple"
Line = str | Callable[[], str]


class Keyboard:
    """Standard input whose lines may be worked out when they are read."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.is_terminal = False

    def isatty(self) -> bool:
        """Say whether this is a terminal."""
        return self.is_terminal

    def readline(self, size: int = -1) -> str:
        """Return the next line."""
        if not self.lines:
            return ""
        line = self.lines.pop(0)
        return (line if isinstance(line, str) else line()) + "\n"


class Desk:
    """Somebody at the machine, with a phone."""

    def __init__(self, folder: Path, keyboard: Keyboard, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.keyboard, self.capsys = folder, keyboard, capsys
        self.said, self.seeds, self.used = "", dict[str, str](), dict[str, int]()

    def run(self, *arguments: str, lines: tuple[Line, ...] = (), status: int = 0) -> str:
        """Run a command and return what it said."""
        self.keyboard.lines = list(lines)
        self.said = ""
        assert auth_cli.main([*arguments, "--folder", str(self.folder)]) == status, self.capsys.readouterr().err
        found = self.capsys.readouterr()
        self.said += found.out
        return self.said if status == 0 else found.err

    def scan(self, name: str) -> Callable[[], str]:
        """Return what reads the seed off the screen and types the code."""

        def code() -> str:
            self.said += self.capsys.readouterr().out
            found = re.search(r"seed: ([A-Z2-7]{32})", self.said)
            assert found
            self.seeds[name] = found[1]
            return pyotp.TOTP(found[1]).now()

        return code

    def forget_codes(self) -> None:
        """Let the next code be another one, without waiting for half a minute."""
        with sqlite3.connect(self.folder / "people.sqlite3") as connection:
            connection.execute("UPDATE people SET step = 0")
        connection.close()

    def admin(self, name: str = "anna") -> tuple[Line, ...]:
        """Return what an admin types."""
        self.forget_codes()
        return name, PASSWORD, lambda: pyotp.TOTP(self.seeds[name]).now()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    """Return a machine where the first person was made."""
    keyboard = Keyboard()
    monkeypatch.setattr(sys, "stdin", keyboard)
    monkeypatch.setattr("btcbot.security.users.DEFAULT_COST", Cost(4, 1, 1))
    monkeypatch.delenv("BTCBOT_VAULT_KEY", raising=False)
    desk = Desk(tmp_path / "auth", keyboard, capsys)
    said = desk.run("user", "add", "anna", lines=(PASSWORD, desk.scan("anna")))
    assert "anna may log in, with the roles read, trade, admin" in said
    assert len(re.findall(r"^  [a-z2-7]{4}(?:-[a-z2-7]{4}){3}$", said, re.M)) == 10
    assert "█" in said or "▀" in said
    yield desk


def test_the_first_person_needs_the_machine_the_next_one_an_admin(desk: Desk) -> None:
    assert "anna  admin,read,trade  since" in desk.run("user", "list")
    said = desk.run("user", "add", "bert", lines=(*desk.admin(), "another long password", desk.scan("bert")))
    assert "bert may log in, with the roles read." in said
    for lines in (
        ("anna", "wrong password here", "000000"),
        ("bert", "another long password", lambda: pyotp.TOTP(desk.seeds["bert"]).now()),
    ):
        desk.forget_codes()
        error = desk.run("user", "add", "carl", lines=lines, status=2)
        assert "is wrong" in error or "no role admin" in error
    assert desk.run("user", "list").count("\n") == 2
    assert {path.stat().st_mode & 0o077 for path in (desk.folder, *desk.folder.iterdir())} == {0}


def test_a_person_who_lost_the_phone_gets_another_seed(desk: Desk) -> None:
    old = desk.seeds["anna"]
    assert "the name wasn't typed" in desk.run("user", "reset", "anna", lines=("yes",), status=2)
    assert "nobody named bert" in desk.run("user", "reset", "bert", status=2)
    desk.run("user", "reset", "anna", lines=("anna", PASSWORD, desk.scan("anna")))
    assert desk.seeds["anna"] != old
    assert "expected: Your name" in desk.run("token", "metrics", "prometheus", status=2)
    assert desk.run("token", "metrics", "prometheus", lines=desk.admin()).startswith("btm_")
    assert "the name wasn't typed" in desk.run("user", "remove", "anna", lines=("",), status=2)
    desk.run("user", "remove", "anna", lines=("anna",))
    assert desk.run("user", "list") == ""
    assert "nobody named anna" in desk.run("user", "remove", "anna", lines=("anna",), status=2)


def test_wrong_input_changes_nothing(desk: Desk, tmp_path: Path) -> None:
    desk.folder = tmp_path / "other"
    assert "must have the role admin" in desk.run("user", "add", "anna", "--roles", "read", status=2)
    assert "won't do" in desk.run("user", "add", "anna", lines=("short", "000000"), status=2)
    assert "isn't the code" in desk.run("user", "add", "anna", lines=(PASSWORD, "000000"), status=2)
    assert "is no name" in desk.run("user", "add", "Anna", status=2)
    assert desk.run("user", "list") == ""


def test_a_grant_is_issued_listed_and_revoked(desk: Desk, tmp_path: Path) -> None:
    key = make_key(tmp_path / "bot.pem")
    (tmp_path / "bot.pub").write_text(key.public + "\n")
    limits = (
        "--account",
        "5001",
        "--symbols",
        "BTCUSD",
        "--magics",
        "7,1000-1999",
        "--volume",
        "0.5",
        "--orders-a-day",
        "20",
        "--days",
        "30",
    )
    said = desk.run("grant", "issue", "trend bot", "--key", str(tmp_path / "bot.pub"), *limits, lines=desk.admin())
    id = said.split()[0]
    assert "is good until" in said
    listed = desk.run("grant", "list")
    assert f"{id}  trend bot  account 5001  BTCUSD  magics 7,1000-1999  0.5 lots, 20 orders a day  trade  by anna  until" in listed
    desk.run("grant", "issue", "other", "--key", key.public, *limits, lines=desk.admin())
    assert "private key" in desk.run("grant", "issue", "x", "--key", str(tmp_path / "bot.pem"), *limits, status=2)
    assert "neither a public key" in desk.run("grant", "issue", "x", "--key", "nothing", *limits, status=2)
    (tmp_path / "bad.pub").write_text("hello")
    assert "is no public key" in desk.run("grant", "issue", "x", "--key", str(tmp_path / "bad.pub"), *limits, status=2)
    assert "neither a magic" in desk.run("grant", "issue", "x", "--key", key.public, *limits[:5], "7..9", *limits[6:], status=2)
    desk.run("grant", "revoke", id)
    assert f"{id}  trend bot" in (listed := desk.run("grant", "list")) and "revoked" in listed
    assert "no grant g-0" in desk.run("grant", "revoke", "g-0", status=2)


def test_metrics_tokens_are_shown_once(desk: Desk) -> None:
    token = desk.run("token", "metrics", "prometheus", lines=desk.admin()).split()[0]
    listed = desk.run("token", "list")
    assert listed.startswith("prometheus  since") and token not in listed
    desk.run("token", "revoke", "prometheus")
    assert "no token prometheus" in desk.run("token", "revoke", "prometheus", status=2)


def test_at_a_terminal_passwords_are_typed_twice_and_unseen(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.keyboard.is_terminal = True
    typed = iter([PASSWORD, "another one entirely"])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(typed))
    monkeypatch.setattr("builtins.input", lambda prompt: "anna")
    assert "the two entries of the password differ" in desk.run("user", "reset", "anna", status=2).lower()
    monkeypatch.setattr("builtins.input", lambda prompt: (_ for _ in ()).throw(KeyboardInterrupt))
    assert desk.run("user", "reset", "anna", status=130) == ""


def test_a_terminal_without_the_characters_shows_the_seed_alone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warden, "qr_text", lambda uri, is_coloured: "\udcff")
    said = desk.run("user", "reset", "anna", lines=("anna", PASSWORD, desk.scan("anna")))
    assert "Scan this" not in said and desk.seeds["anna"] in said


def test_the_key_of_the_vault_may_come_from_elsewhere(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = (desk.folder / "vault.key").read_text().strip()
    monkeypatch.setenv("BTCBOT_VAULT_KEY", key)
    (desk.folder / "vault.key").unlink()
    assert "anna" in desk.run("user", "list")
    monkeypatch.setenv("BTCBOT_VAULT_KEY", key[1:-1] + key[0] + "=")
    assert "can't be opened" in desk.run("user", "list", status=2)
    monkeypatch.delenv("BTCBOT_VAULT_KEY")
    assert "can't be read" in desk.run("user", "list", status=2)  # people are there, so no new key is made
    monkeypatch.setenv("OTHER", key)
    assert "anna" in desk.run("user", "list", "--vault-key", "env:OTHER")
    assert "never as itself" in desk.run("user", "list", "--vault-key", key, status=2)


def test_another_vault_is_noticed_at_the_start(desk: Desk, tmp_path: Path) -> None:
    key = vault_key(f"file:{desk.folder / 'vault.key'}")
    (desk.folder / "vault.json").unlink()
    Vault(desk.folder / "vault.json", key, make=True).sealer("people/seeds", make=True)
    assert "isn't the one with which" in desk.run("user", "list", status=2)


def test_a_server_without_people_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BTCBOT_VAULT_KEY", raising=False)
    with Auth.open(AuthSettings(folder=tmp_path / "auth")) as auth:
        assert not auth.has_people
    assert auth_cli.default_folder().name == "mt5_server"
