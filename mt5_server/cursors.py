"""Where a list goes on: an opaque text, good for the same question only."""

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Final

from mt5_server.refusal import Refusal

_VERSION: Final = 1


def _digest(question: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(question).encode()).hexdigest()[:12]


def cursor(question: Sequence[object], *place: int) -> str:
    """Return the cursor that stands for `place` in the answer to `question`."""
    return base64.urlsafe_b64encode(json.dumps([_VERSION, _digest(question), *place]).encode()).decode().rstrip("=")


def place_of(text: str | None, question: Sequence[object], count: int) -> list[int] | None:
    """Return the place that a cursor stands for, None where there is no cursor."""
    if text is None:
        return None
    try:
        found = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        version, digest, *place = found
        is_good = version == _VERSION and digest == _digest(question) and len(place) == count
        if is_good and all(type(number) is int and 0 <= number < 2**63 for number in place):
            return [int(number) for number in place]
    except (ValueError, TypeError, RecursionError):
        pass
    said = "The cursor belongs to another question, or isn't one: pass on `next` as it was given, with the same parameters."
    raise Refusal(400, "invalid-cursor", said)
