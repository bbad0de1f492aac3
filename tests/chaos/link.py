"""The link between trader and server: requests and answers that get lost, come late, twice, or again when nobody expects them."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter
from urllib3.connection import HTTPConnection
from urllib3.exceptions import MaxRetryError, NewConnectionError

from tests.chaos.schedules import LINK_KINDS, Trouble

ORDER = "/v1/order"


class Time(Protocol):
    """The clock that the link goes by, in market seconds since the start of the schedule."""

    def elapsed(self) -> float:
        """Return what it shows."""
        ...

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        ...

    def later(self, seconds: float, what: Callable[[], object]) -> None:
        """Do something when so much time has passed."""
        ...


class Link(BaseAdapter):
    """Carries requests by `carry`, as well as its troubles let it."""

    def __init__(
        self,
        time: Time,
        troubles: tuple[Trouble, ...],
        carry: Callable[..., requests.Response],
        struck: Callable[[str], object],
        until: float,  # from then on nothing goes wrong any more
        patience: float = 1.0,  # market seconds in a second of the caller's time-out
    ):
        super().__init__()
        self._time, self._carry, self._struck, self._until, self._patience = time, carry, struck, until, patience
        self._spans = [trouble for trouble in troubles if trouble.kind in LINK_KINDS[-2:]]
        self._single = [trouble for trouble in troubles if trouble.kind in LINK_KINDS[:-2]]

    def send(self, request: requests.PreparedRequest, *_: Any, timeout: Any = None, **how: Any) -> requests.Response:
        """Carry one request."""
        now, limit = self._time.elapsed(), float(timeout[1]) * self._patience
        for trouble in self._spans:
            if trouble.at_s <= now < trouble.at_s + trouble.for_s:
                self._struck(trouble.kind)
                if trouble.kind == "refused":
                    raise never_connected(request)
                self._time.wait(limit)
                raise requests.ReadTimeout("silence", request=request)
        if urlsplit(request.url or "").path != ORDER:
            return self._carried(request, limit, timeout, how)
        trouble = next((one for one in self._single if one.at_s <= now < self._until), None)
        if trouble is None:
            return self._carried(request, limit, timeout, how)
        self._single.remove(trouble)
        self._struck(trouble.kind)
        return self._troubled(trouble, request, limit, timeout, how)

    def _carried(self, request: requests.PreparedRequest, limit: float, timeout: Any, how: dict[str, Any]) -> requests.Response:
        began = self._time.elapsed()
        answer = self._carry(request, timeout=timeout, **how)
        if self._time.elapsed() - began > limit:
            raise requests.ReadTimeout("the answer came too late", request=request)
        return answer

    def _troubled(
        self, trouble: Trouble, request: requests.PreparedRequest, limit: float, timeout: Any, how: dict[str, Any]
    ) -> requests.Response:
        def again() -> None:
            with suppress(requests.RequestException):  # nobody waits for its answer
                self._carry(request.copy(), timeout=timeout, **how)

        if trouble.kind == "lost_way":
            self._time.wait(limit)
            raise requests.ReadTimeout("the request got lost", request=request)
        if trouble.kind == "late":
            self._time.later(trouble.size, again)
            self._time.wait(limit)
            raise requests.ReadTimeout("the request is on its way", request=request)
        if trouble.kind == "slow":
            self._time.wait(trouble.size)
        if trouble.kind == "twice":
            again()
        try:
            answer = self._carried(request, limit, timeout, how)
        except requests.ConnectionError:
            if trouble.kind != "twice":
                raise
            raise requests.ConnectionError("the connection was reset", request=request) from None  # it had been made
        if trouble.kind == "replay":
            self._time.later(trouble.size, again)
        if trouble.kind == "lost_reply":
            raise requests.ConnectionError("the connection was reset", request=request)
        return answer

    def close(self) -> None:
        """Keep nothing."""


def never_connected(request: requests.PreparedRequest) -> requests.ConnectionError:
    """Return what requests raises where nobody listens."""
    place = urlsplit(request.url or "")
    refused = NewConnectionError(HTTPConnection(place.hostname or "", place.port or 80), "refused")
    return requests.ConnectionError(MaxRetryError(None, place.path, refused), request=request)
