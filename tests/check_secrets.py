"""Refuse secrets in what git tracks: sources, settings, notebooks with their outputs.

Found are private keys, tokens of this project's server and of common services, passwords in addresses, seeds of second factors, and
long random text under a name such as password or api_key. What is made up says so: it holds a word such as example, canary or test, or
is listed in ALLOWED with a reason. As a hook before each commit it looks at what is about to be committed: make hook
"""

import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s*(?:\\n|\n)?[\"',\s]*(?P<secret>[A-Za-z0-9+/=]{32,})",
    "a token of a server": r"\b(?P<secret>bt[sgm]_[A-Za-z0-9_-]{43})\b",
    "a key of AWS": r"\b(?P<secret>(?:AKIA|ASIA)[A-Z0-9]{16})\b",
    "a token of GitHub": r"\b(?P<secret>gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})\b",
    "a token of Slack": r"\b(?P<secret>xox[abprs]-[A-Za-z0-9-]{20,})\b",
    "a token of Telegram": r"\b(?P<secret>\d{8,10}:AA[A-Za-z0-9_-]{33})\b",
    "a token of PyPI": r"\b(?P<secret>pypi-[A-Za-z0-9_-]{60,})\b",
    "a signed token": r"\b(?P<secret>eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,})\b",
    "a second factor": r"otpauth://[^\s\"']*secret=(?P<secret>[A-Z2-7]{16,})",
    "a password in an address": r"://[^\s/:@\"'<>{}\[\]]+:(?P<secret>[^\s/:@\"'<>{}\[\]$*]{12,})@",
    "a secret": r"(?i)(?:password|passwd|passphrase|api_?key|secret|token|login_?key)[\"']?\s*[:=]\s*\\?[\"']"
    r"(?P<secret>[A-Za-z0-9+/_=.~-]{20,})\\?[\"']",
}
RANDOM = {"a secret", "a password in an address"}  # named so, and found only where the text is as varied as chance
BITS = 3.8  # a character
MADE_UP = re.compile(
    "example|canary|test|wrong|demo|dummy|characters|correct.horse|hunter|of.some.length|not.for.others|0123456789", re.IGNORECASE
)
# Seeds and tokens of documents and examples, by the beginning of the text.
ALLOWED = {
    "JBSWY3DPEHPK3PXP": "the seed of every TOTP example",
    "GEZDGNBVGY3TQOJQ": "the seed of the vectors in RFC 6238",
}
SKIPPED = {"requirements"}  # locks hold nothing but hashes


def bits(text: str) -> float:
    """Return Shannon's entropy of the characters of `text`, in bits a character."""
    return -sum(count / len(text) * math.log2(count / len(text)) for count in Counter(text).values())


def secrets_in(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and kind of what looks like a secret; never the secret."""
    text = text.replace("\\n", "  ")  # a line break in JSON
    for kind, shape in SHAPES.items():
        for found in re.finditer(shape, text):
            secret = found["secret"]
            is_made_up = MADE_UP.search(secret) or any(secret.startswith(known) for known in ALLOWED)
            if not is_made_up and (kind not in RANDOM or bits(secret) >= BITS):
                yield text.count("\n", 0, found.start()) + 1, kind


def git(*arguments: str) -> bytes:
    """Return what git says."""
    return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True).stdout


def texts(is_hook: bool) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each file that is tracked, or is about to be committed."""
    command = ["diff", "--cached", "--name-only", "--diff-filter=ACMR", "-z"] if is_hook else ["ls-files", "-z"]
    for name in filter(None, git(*command).decode().split("\0")):
        path = ROOT / name
        if name.partition("/")[0] in SKIPPED or path.is_symlink() or not (is_hook or path.is_file()):
            continue
        raw = git("show", f":{name}") if is_hook else path.read_bytes()
        if b"\0" not in raw[:8000]:
            yield name, raw.decode("utf-8", "replace")


def main() -> int:
    """Print what was found and return 1 if anything was."""
    found = [f"{name}:{line}: {kind}" for name, text in texts("--hook" in sys.argv) for line, kind in secrets_in(text)]
    if found:
        print("\n".join(found))
        print("If one of these is real, change it at its source: git keeps what was committed.")
        print("If it is made up, let it say so: tests/check_secrets.py tells how.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
