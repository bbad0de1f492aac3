"""`mt5-server user`, `mt5-server grant` and `mt5-server token`: who may call, decided at the machine itself.

A password or a code is never an argument, which every user of the machine could read: it is asked for, or read line by line from
standard input where that is no terminal. What gives access (another person, a grant, a token) takes the code of a person with role
admin, and the first person of all takes nothing but the machine. What takes access away needs no code.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from btcbot.core.config import home_folder
from btcbot.core.errors import BtcbotError
from btcbot.core.log import redact
from btcbot.security.grants import ROLES, moment
from btcbot.security.keys import public_bytes
from btcbot.security.users import Users
from btcbot.security.warden import add_person, confirmed, list_people, remove_person, reset_person, say
from mt5_server.auth import Auth, AuthSettings
from mt5_server.grants import magic_ranges, magic_texts

COMMANDS: Final = ("user", "grant", "token")
Run: TypeAlias = Callable[[Auth, argparse.Namespace], str | None]  # returns who gave a code
FOLDER: Final = "mt5_server"  # in btcbot's home folder


def default_folder() -> Path:
    """Return where people, grants and the vault are kept."""
    return home_folder() / FOLDER


def _people(auth: Auth) -> Users:
    assert auth.users is not None
    return auth.users


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _user_add(auth: Auth, given: argparse.Namespace) -> None:
    add_person(_people(auth), given.name, _words(given.roles or ""))


def _user_list(auth: Auth, given: argparse.Namespace) -> None:
    list_people(_people(auth))


def _user_remove(auth: Auth, given: argparse.Namespace) -> None:
    remove_person(_people(auth), given.name)


def _user_reset(auth: Auth, given: argparse.Namespace) -> None:
    reset_person(_people(auth), given.name)


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


def _grant_issue(auth: Auth, given: argparse.Namespace) -> str:
    public, magics = _public_key(given.key), magic_ranges(_words(given.magics))
    by = confirmed(_people(auth))
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
    say(f"{grant.id} is good until {moment(grant.ends_ms)}; after that it closes positions until {moment(grant.reduce_until_ms)}.")
    return by


def _grant_list(auth: Auth, given: argparse.Namespace) -> None:
    for held in auth.grants.everything():
        grant = held.grant
        state = f"revoked {moment(held.revoked_ms)}" if held.revoked_ms is not None else f"until {moment(grant.ends_ms)}"
        limits = f"{grant.volume} lots, {grant.orders_a_day} orders a day"
        magics = ",".join(magic_texts(grant))
        roles, symbols = ",".join(sorted(grant.roles)), ",".join(grant.symbols)
        what = f"account {grant.account}  {symbols}  magics {magics}  {limits}  {roles}"
        say(f"{grant.id}  {grant.name}  {what}  by {grant.issued_by}  {state}")


def _grant_revoke(auth: Auth, given: argparse.Namespace) -> None:
    if not auth.grants.revoke(given.id):
        raise BtcbotError(f"There is no grant {given.id}: mt5-server grant list shows them.")
    say(f"{given.id} was revoked; it is worth nothing from now on.")


def _token_metrics(auth: Auth, given: argparse.Namespace) -> str:
    by = confirmed(_people(auth))
    say(auth.grants.new_reader(given.name))
    say("It reads /metrics and nothing else. It isn't shown again: put it into the file that Prometheus reads (credentials_file).")
    return by


def _token_list(auth: Auth, given: argparse.Namespace) -> None:
    for name, made_ms in auth.grants.readers():
        say(f"{name}  since {moment(made_ms)}")


def _token_revoke(auth: Auth, given: argparse.Namespace) -> None:
    if not auth.grants.revoke_reader(given.name):
        raise BtcbotError(f"There is no token {given.name}: mt5-server token list shows them.")
    say(f"{given.name} was revoked; it is worth nothing from now on.")


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--folder", type=Path, help=f"where people, grants and the vault are (default: {FOLDER} in btcbot's home folder)")
    common.add_argument(
        "--vault-key", metavar="SOURCE", help="env:NAME, file:PATH, keyring:NAME or passphrase-env:NAME (default: vault.key in the folder)"
    )
    parser = argparse.ArgumentParser("mt5-server", description="Who may call the server. Works while it runs, and at once.")
    groups = parser.add_subparsers(required=True, metavar="COMMAND")

    def group(name: str, text: str) -> Callable[[str, Run, str], argparse.ArgumentParser]:
        actions = groups.add_parser(name, help=text, description=text).add_subparsers(required=True, metavar="ACTION")

        def action(verb: str, run: Run, text: str) -> argparse.ArgumentParser:
            made = actions.add_parser(verb, help=text, description=text, parents=[common])
            made.set_defaults(run=run, what=f"{name} {verb}")
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


def _written_down(auth: Auth, given: argparse.Namespace) -> None:
    """Run a command; what changes who may call is a line in the audit trail, by the person who gave a code if one did."""
    detail = str(getattr(given, "name", getattr(given, "id", "")))
    try:
        by = given.run(auth, given)
    except BtcbotError as error:
        auth.note("machine", f"{given.what} refused", f"{detail}: {error}")
        raise
    if not given.what.endswith(" list"):
        auth.note(by or "machine", given.what, detail, is_confirmed=by is not None)


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    given = _parser().parse_args(arguments)
    try:
        with Auth.open(AuthSettings(folder=given.folder or default_folder(), vault_key=given.vault_key)) as auth:
            _written_down(auth, given)
    except BtcbotError as error:
        print(f"mt5-server: {redact(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
