"""May this caller send this order? The question that `Orders` asks of `Auth`, with what the terminal knows of the tickets in it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from btcbot.terminal.contract import AccountInfo, TradeOrder, TradePosition
from btcbot.terminal.wire import Answer, Call
from mt5_server.auth import Auth, Caller
from mt5_server.refusal import Refusal


class Asked(Protocol):
    """The part of a submission that counts here."""

    @property
    def key(self) -> str:
        """Return the order's key."""

    @property
    def request(self) -> Mapping[str, object]:
        """Return the fields of the trade request."""


class Door(Protocol):
    """The part of a gate that is used here."""

    def batch(self, calls: Sequence[Call], timeout_s: float | None = None) -> list[Answer]:
        """Answer calls, with nobody in between."""


def _look_ups(request: Mapping[str, object]) -> list[Call]:
    """Return the calls that find what a request names by its ticket."""
    calls: list[Call] = []
    for field, function in (("position", "positions_get"), ("position_by", "positions_get"), ("order", "orders_get")):
        ticket = request.get(field)
        if isinstance(ticket, int) and ticket > 0:
            calls.append((function, (), {"ticket": ticket}))
    return calls


def admission(auth: Auth, gate: Door) -> Callable[[Asked, object, bool], None]:
    """Return what `Orders` takes as `admit`: it raises a `Refusal` where the caller may not send an order.

    Only a grant has limits that ask the terminal something. A ticket that the terminal doesn't know limits nothing: there the broker
    answers that it is gone, as it would without a server in between.
    """

    def admit(asked: Asked, caller: object, is_entry: bool) -> None:
        assert isinstance(caller, Caller)
        account, targets = 0, list[tuple[int | None, str | None]]()
        if caller.grant is not None:
            first, *found = gate.batch([("account_info", (), {}), *_look_ups(asked.request)])
            if not isinstance(first.value, AccountInfo):
                raise Refusal(
                    503, "terminal-unreadable", "The terminal doesn't say which account it is on: try again.", what="account_info"
                )
            account = first.value.login
            things = [thing for answer in found if isinstance(answer.value, tuple) for thing in answer.value]
            targets = [(thing.magic, thing.symbol) for thing in things if isinstance(thing, TradePosition | TradeOrder)]
        for magic, symbol in targets or [(None, None)]:
            auth.check_order(
                caller,
                asked.request,
                account=account,
                is_reducing=not is_entry,
                key=asked.key,
                target_magic=magic,
                target_symbol=symbol,
            )

    return admit
