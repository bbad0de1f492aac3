"""The check that keeps secrets out of what is committed: finds each kind, never repeats one, and works as a hook."""

import base64
import json
import os
import secrets
import shutil
import string
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from check_secrets import ROOT, SHAPES, secrets_in


def chance(length: int, letters: str = string.ascii_letters + string.digits) -> str:
    """Return text made by chance, in which no short word is likely and every letter is about as frequent."""
    return "".join(secrets.SystemRandom().sample(letters * (1 + length // len(letters)), length))


UPPER = string.ascii_uppercase + "234567"
PEM = "-----BEGIN PRIVATE KEY-----\n" + base64.b64encode(secrets.token_bytes(48)).decode()
MADE = {
    "a private key": PEM,
    "a token of a server": f"Authorization: Bearer bts_{chance(43)}",
    "a key of AWS": f"AKIA{chance(16, UPPER)}",
    "a token of GitHub": f"ghp_{chance(36)}",
    "a token of Slack": f"xoxb-{chance(30)}",
    "a token of Telegram": f"{chance(9, '123456789')}:AA{chance(33)}",
    "a token of PyPI": f"pypi-{chance(61)}",
    "a signed token": f"eyJ{chance(20)}.eyJ{chance(30)}.{chance(40)}",
    "a second factor": f"otpauth://totp/x?issuer=y&secret={chance(32, UPPER)}",
    "a password in an address": f"postgresql://me:{chance(20)}@db/market",
    "a secret": f'api_key = "{chance(32)}"',
}


@pytest.mark.parametrize("kind", SHAPES)
def test_each_kind_is_found_in_a_source_and_in_the_output_of_a_notebook(kind: str) -> None:
    source = f"first line\n{MADE[kind]}\n"
    assert (2, kind) in list(secrets_in(source))
    notebook = json.dumps({"cells": [{"outputs": [{"text": [source]}], "source": []}]}, indent=1)
    assert kind in [found for _, found in secrets_in(notebook)]


def test_what_is_made_up_or_no_secret_is_left_alone() -> None:
    for text in (
        'password = "correct horse battery staple"',
        'token = "a-token-of-the-tests-that-is-long-enough"',
        'token_env = "BTCBOT_SERVER_TOKEN"',
        "postgresql://user:password@host:port/database",
        f"sha256:{secrets.token_hex(32)}",
        'secret = "aaaaaaaaaaaaaaaaaaaaaaaaaaaa"',
    ):
        assert not list(secrets_in(text)), text


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_hook_looks_at_what_is_about_to_be_committed(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests/check_secrets.py", tmp_path / "tests")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=clean)

    run("git", "init", "-q")
    (tmp_path / "run.ipynb").write_text(MADE["a secret"])
    hook = (sys.executable, "tests/check_secrets.py", "--hook")
    assert run(*hook).returncode == 0
    run("git", "add", "run.ipynb")
    (tmp_path / "run.ipynb").write_text("mended, and not added")
    done = run(*hook)
    assert done.returncode == 1 and done.stdout.startswith("run.ipynb:1: a secret\n")
    assert MADE["a secret"].split('"')[1] not in done.stdout
