"""The server's lines in the audit trail: who asked for what that matters, from where, with a second factor or not, and what came of it.

A line is written when the answer is known. A login that is refused has no name in it: people type their password there. What a
stranger tries elsewhere is refused before it means anything, and is no line, or strangers could fill the disk.
"""

import json
from typing import Final

from flask import Response, request

from btcbot.security.throttle import source_of
from mt5_server.auth import Auth, caller_or_none

LOGIN: Final = ("POST", "/v1/login")
STEP_UP: Final = ("POST", "/v1/login/code")
WRITTEN: Final = {
    LOGIN: "log in",
    STEP_UP: "give a code",
    ("POST", "/v1/logout"): "log out",
    ("POST", "/v1/grants"): "grant issue",
    ("DELETE", "/v1/grants/<id>"): "grant revoke",
    ("POST", "/v1/order/<key>/resolve"): "decide an order",
    ("POST", "/v1/guard/limits"): "change limits",
    ("POST", "/v1/guard/halt"): "block entries",
    ("POST", "/v1/guard/lift"): "allow entries",
}
LONGEST: Final = 1000  # characters of a detail


def write_down(auth: Auth, response: Response) -> None:
    """Write the present request into the trail, if it is one of those that matter."""
    route = (request.method, "" if request.url_rule is None else request.url_rule.rule)
    caller, is_done = caller_or_none(), response.status_code < 300
    if route not in WRITTEN or response.status_code == 429 or (caller is None and route != LOGIN):
        return
    given = request.get_json(silent=True) if is_done else None  # what was refused may be too large to read, or no JSON
    named = [*(request.view_args or {}).values()]
    if route not in (LOGIN, STEP_UP) and given:
        named.append(json.dumps(given, ensure_ascii=False))
    who = caller.name if caller is not None else str(given["user"]) if given else "somebody"
    is_fresh = caller is not None and caller.kind == "person" and caller.is_second_factor_fresh
    is_confirmed = is_done and (is_fresh or route in (LOGIN, STEP_UP))
    what = WRITTEN[route] if is_done else f"{WRITTEN[route]} refused ({response.status_code})"
    auth.note(who, what, " ".join(map(str, named))[:LONGEST], source_of(request.remote_addr or ""), is_confirmed)
