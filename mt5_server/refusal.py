"""A request that the server refuses: what every part raises and the app turns into a problem document (RFC 9457)."""

from collections.abc import Mapping

from btcbot.terminal.wire import Json


class Refusal(Exception):
    """An answer other than a result: HTTP status, type (a slug), what was wrong and the remedy; `more` are members of the document."""

    def __init__(self, status: int, type: str, detail: str, headers: Mapping[str, str] | None = None, **more: Json):
        super().__init__(detail)
        self.status, self.type, self.detail = status, type, detail
        self.headers: dict[str, str] = dict(headers or {})
        self.more = more
