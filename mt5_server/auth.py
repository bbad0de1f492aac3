"""Who may call: one bearer token, of which the server keeps only a hash."""

import hashlib
import hmac

from btcbot.core.errors import BtcbotError

MIN_TOKEN = 32  # characters; `python -c "import secrets; print(secrets.token_urlsafe(32))"` gives 43


def hash_token(token: str) -> bytes:
    """Return what the server keeps of `token`, after a check that it can't be guessed.

    A plain SHA-256 is enough for a random token of this length; it would not be for a password.
    """
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise BtcbotError(
            f"The server's token has {len(token)} characters: it takes at least {MIN_TOKEN} printable ASCII characters without blanks, "
            'made by chance, for example by python -c "import secrets; print(secrets.token_urlsafe(32))".'
        )
    return hashlib.sha256(token.encode()).digest()


def is_authorised(header: str | None, token_hash: bytes) -> bool:
    """Say whether the Authorization `header` holds the token, in a time that tells nothing about it."""
    scheme, _, token = (header or "").partition(" ")
    given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
    return hmac.compare_digest(given, token_hash) and scheme.lower() == "bearer"
