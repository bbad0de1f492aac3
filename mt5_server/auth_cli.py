"""`mt5-server user`, `mt5-server grant` and `mt5-server token`: who may call, decided at the machine itself.

A password or a code is never an argument, which every user of the machine could read: it is asked for, or read line by line from
standard input where that is no terminal. What gives access (another person, a grant, a token) takes the code of a person with role
admin, and the first person of all takes nothing but the machine. What takes access away needs no code.
"""

import argparse
import getpass
import os
import socket
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from btcbot.core.config import home_folder
from btcbot.core.errors import BtcbotError
from btcbot.security.grants import ROLES, moment
from btcbot.security.keys import public_bytes
from btcbot.security.throttle import Throttled
from btcbot.security.totp import qr_text, seed_uri
from btcbot.security.users import Enrolment, LoginRefused, Users
from mt5_server.auth import Auth, AuthSettings
from mt5_server.grants import magic_ranges, magic_texts

COMMANDS: Final = ("user", "grant", "token")
FOLDER: Final = "mt5_server"  # in btcbot's home folder
_LOCAL: Final = "127.0.0.1"


def default_folder() -> Path:
    """Return where people, grants and the vault are kept."""
    return home_folder() / FOLDER


def _say(text: str = "") -> None:
    print(text, flush=True)


def _can_print(text: str) -> bool:
    """Say whether the terminal has the characters; that of an old Windows, or a file, may not."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _ask(prompt: str, *, is_secret: bool = False) -> str:
    """Ask at the terminal, or read the next line of standard input."""
    if sys.stdin.isatty():
        return getpass.getpass(prompt) if is_secret else input(prompt)
    line = sys.stdin.readline(4096)
    if not line:
        raise BtcbotError(f"Standard input ended where this was expected: {prompt.strip().rstrip(':')}.")
    return line.rstrip("\r\n")


def _new_password() -> str:
    password = _ask("New password: ", is_secret=True)
    if sys.stdin.isatty() and _ask("Once more: ", is_secret=True) != password:
        raise BtcbotError("The two passwords differ: start again.")
    return password


def _people(auth: Auth) -> Users:
    assert auth.users is not None
    return auth.users


def _as_admin(auth: Auth) -> str:
    """Ask for a person with role admin, and return the name."""
    name = _ask("Your name: ")
    try:
        session = _people(auth).login(name, _ask("Your password: ", is_secret=True), _ask("Your code: "), _LOCAL)
    except (LoginRefused, Throttled) as error:
        raise BtcbotError(str(error)) from None
    _people(auth).end(session.handle)
    if "admin" not in session.roles:
        raise BtcbotError(f"{session.name} has no role admin: somebody who has must do this.")
    return session.name


def _show(enrolment: Enrolment) -> None:
    uri = seed_uri(enrolment.seed, enrolment.name, socket.gethostname())
    if _can_print(drawn := qr_text(uri, sys.stdout.isatty() and (os.name == "posix" or "WT_SESSION" in os.environ))):
        _say("Scan this with an application for one-time codes on your phone:")
        _say(drawn)
        _say(f"or type the seed: {enrolment.seed}")
    else:
        _say(f"Type this into an application for one-time codes on your phone, as time-based, seed: {enrolment.seed}")
    _say("Recovery codes, for the day when the phone is gone. Each works once. Write them down now, they are not shown again:")
    for code in enrolment.recovery_codes:
        _say(f"  {code}")


def _enrol(auth: Auth, name: str, keep: Callable[[Enrolment, str, str], None]) -> None:
    enrolment = _people(auth).enrol(name)
    password = _new_password()
    _show(enrolment)
    keep(enrolment, password, _ask("The code that the phone shows now: "))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _user_add(auth: Auth, given: argparse.Namespace) -> None:
    users = _people(auth)
    is_first = not users.people()
    roles = _words(given.roles or ("read,trade,admin" if is_first else "read"))
    if is_first and "admin" not in roles:
        raise BtcbotError("The first person must have the role admin, since only such a person lets others in: add it to --roles.")
    if not is_first:
        _as_admin(auth)
    _enrol(auth, given.name, lambda enrolment, password, code: users.add(enrolment, password, roles, code))
    _say(f"{given.name} may log in, with the roles {', '.join(roles)}.")


def _user_list(auth: Auth, given: argparse.Namespace) -> None:
    for person in _people(auth).people():
        made = datetime.fromtimestamp(person.created_ms / 1000, UTC)
        _say(f"{person.name}  {','.join(sorted(person.roles))}  since {made:%Y-%m-%d}  {person.recovery_codes_left} recovery codes left")


def _confirm(name: str, what: str) -> None:
    if _ask(f"{what} Type {name} to go on: ") != name:
        raise BtcbotError("Nothing was changed: the name wasn't typed.")


def _user_remove(auth: Auth, given: argparse.Namespace) -> None:
    _confirm(given.name, f"{given.name} won't be able to log in any more.")
    _people(auth).remove(given.name)
    _say(f"{given.name} was removed; all sessions have ended.")


def _user_reset(auth: Auth, given: argparse.Namespace) -> None:
    if given.name not in [person.name for person in _people(auth).people()]:
        raise BtcbotError(f"There is nobody named {given.name}: mt5-server user list shows who there is.")
    _confirm(given.name, f"The old password, phone and recovery codes of {given.name} will be worth nothing.")
    _enrol(auth, given.name, _people(auth).reset)
    _say(f"{given.name} has a new password, seed and recovery codes; all sessions have ended.")


def _public_key(text: str) -> str:
    """Return a public key that was given as itself or as a file; a file with the private key is refused."""
    if not text.startswith("ed25519:"):
        try:
            text = Path(text).read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise BtcbotError(f"{text} is neither a public key nor a file with one: give the line that starts with ed25519:") from error
        if "PRIVATE KEY" in text:
            raise BtcbotError("This file holds the private key, which must not leave the bot's machine: give the public one, ed25519:...")
    public_bytes(text)
    return text


def _grant_issue(auth: Auth, given: argparse.Namespace) -> None:
    public, magics = _public_key(given.key), magic_ranges(_words(given.magics))
    by = _as_admin(auth)
    grant = auth.grants.issue(
        public,
        by,
        name=given.name,
        account=given.account,
        symbols=_words(given.symbols),
        magics=magics,
        volume=given.volume,
        orders_a_day=given.orders_a_day,
        days=given.days,
        roles=_words(given.roles),
    )
    _say(f"{grant.id} is good until {moment(grant.ends_ms)}; after that it closes positions until {moment(grant.reduce_until_ms)}.")


def _grant_list(auth: Auth, given: argparse.Namespace) -> None:
    for held in auth.grants.everything():
        grant = held.grant
        state = f"revoked {moment(held.revoked_ms)}" if held.revoked_ms is not None else f"until {moment(grant.ends_ms)}"
        limits = f"{grant.volume} lots, {grant.orders_a_day} orders a day"
        magics = ",".join(magic_texts(grant))
        roles, symbols = ",".join(sorted(grant.roles)), ",".join(grant.symbols)
        what = f"account {grant.account}  {symbols}  magics {magics}  {limits}  {roles}"
        _say(f"{grant.id}  {grant.name}  {what}  by {grant.issued_by}  {state}")


def _grant_revoke(auth: Auth, given: argparse.Namespace) -> None:
    if not auth.grants.revoke(given.id):
        raise BtcbotError(f"There is no grant {given.id}: mt5-server grant list shows them.")
    _say(f"{given.id} was revoked; it is worth nothing from now on.")


def _token_metrics(auth: Auth, given: argparse.Namespace) -> None:
    _as_admin(auth)
    _say(auth.grants.new_reader(given.name))
    _say("It reads /metrics and nothing else. It isn't shown again: put it into the file that Prometheus reads (credentials_file).")


def _token_list(auth: Auth, given: argparse.Namespace) -> None:
    for name, made_ms in auth.grants.readers():
        _say(f"{name}  since {moment(made_ms)}")


def _token_revoke(auth: Auth, given: argparse.Namespace) -> None:
    if not auth.grants.revoke_reader(given.name):
        raise BtcbotError(f"There is no token {given.name}: mt5-server token list shows them.")
    _say(f"{given.name} was revoked; it is worth nothing from now on.")


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--folder", type=Path, help=f"where people, grants and the vault are (default: {FOLDER} in btcbot's home folder)")
    common.add_argument(
        "--vault-key", metavar="SOURCE", help="env:NAME, file:PATH or passphrase-env:NAME (default: vault.key in the folder)"
    )
    parser = argparse.ArgumentParser("mt5-server", description="Who may call the server. Works while it runs, and at once.")
    groups = parser.add_subparsers(required=True, metavar="COMMAND")

    def group(name: str, text: str) -> Callable[[str, Callable[[Auth, argparse.Namespace], None], str], argparse.ArgumentParser]:
        actions = groups.add_parser(name, help=text, description=text).add_subparsers(required=True, metavar="ACTION")

        def action(name: str, run: Callable[[Auth, argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
            made = actions.add_parser(name, help=text, description=text, parents=[common])
            made.set_defaults(run=run)
            return made

        return action

    user = group("user", "People, who log in with a password and a code.")
    add = user("add", _user_add, "Let somebody in; shows the QR code for the phone, and recovery codes. The first one has all roles.")
    add.add_argument("name")
    add.add_argument("--roles", metavar="LIST", help=f"from {','.join(ROLES)} (default: read)")
    user("list", _user_list, "Show who may log in.")
    user("remove", _user_remove, "Let somebody in no more.").add_argument("name")
    user("reset", _user_reset, "Give somebody a new password, seed and recovery codes: the phone is gone.").add_argument("name")
    grant = group("grant", "Grants of bots: what a key pair may do.")
    issue = grant("issue", _grant_issue, "Let a bot trade within limits; takes a person with a code.")
    issue.add_argument("name", help="what you call the bot")
    issue.add_argument("--key", required=True, help="the bot's public key, ed25519:..., or a file with it")
    issue.add_argument("--account", type=int, required=True, help="login of the trading account")
    issue.add_argument("--symbols", required=True, metavar="LIST", help="BTCUSD,...")
    issue.add_argument("--magics", required=True, metavar="LIST", help="7,1000-1999,...")
    issue.add_argument("--volume", type=float, required=True, metavar="LOTS", help="largest of one order")
    issue.add_argument("--orders-a-day", type=int, required=True, metavar="N", help="that raise risk")
    issue.add_argument("--days", type=float, required=True, metavar="N", help="how long it is good")
    issue.add_argument("--roles", default="trade", metavar="LIST", help="from read,trade,metrics (default: trade, which reads too)")
    grant("list", _grant_list, "Show all grants.")
    grant("revoke", _grant_revoke, "End a grant at once.").add_argument("id")
    token = group("token", "Tokens for reading metrics.")
    token("metrics", _token_metrics, "Make a token for Prometheus; shown once.").add_argument("name")
    token("list", _token_list, "Show all metrics tokens.")
    token("revoke", _token_revoke, "End a metrics token at once.").add_argument("name")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    given = _parser().parse_args(arguments)
    try:
        with Auth.open(AuthSettings(folder=given.folder or default_folder(), vault_key=given.vault_key)) as auth:
            given.run(auth, given)
    except BtcbotError as error:
        print(f"mt5-server: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
