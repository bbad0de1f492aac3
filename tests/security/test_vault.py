"""A vault that was damaged opens never, and one that was killed while its keys changed opens always."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from btcbot.security.unlocking import vault_key
from btcbot.security.vault import Vault, VaultError

ROUNDS = int(os.environ.get("BTCBOT_ROUNDS", "0"))
SECRETS = {"exchange/token": "not for others", "people/seeds": "c" * 44, "telegram": "12345:" + "t" * 30}
ROTATES = """
import sys
from pathlib import Path
from btcbot.security.unlocking import vault_key
from btcbot.security.vault import Vault
source, path = sys.argv[1], Path(sys.argv[2])
counter = f"file:{path.parent / 'other' / 'count'}"
while True:
    Vault(path, vault_key(source), counter=counter).rotate(source)
    print(flush=True)
"""


def filled(folder: Path) -> tuple[Path, str]:
    """Return a vault with some secrets, and where its key lies."""
    path, source = folder / "vault.json", f"file:{folder / 'keys' / 'vault.key'}"
    vault = Vault(path, vault_key(source, make=True), make=True)
    for name, value in SECRETS.items():
        vault.set(name, value)
    return path, source


def test_no_damage_is_taken_for_a_vault(tmp_path: Path) -> None:
    path, source = filled(tmp_path)
    key, whole, chance = vault_key(source), path.read_bytes(), np.random.default_rng(9)
    opened = 0
    for _ in range(ROUNDS or 400):
        bad = bytearray(whole)
        if chance.random() < 0.7:
            for _ in range(int(chance.choice((1, 1, 1, 2, 8)))):
                at = int(chance.integers(len(bad) * 8))
                bad[at // 8] ^= 1 << at % 8
        else:
            del bad[int(chance.integers(len(bad))) :]
        if bytes(bad) == whole:
            continue
        path.write_bytes(bad)
        try:
            Vault(path, key)
            opened += 1
        except VaultError as error:
            assert not any(value in str(error) for value in SECRETS.values())
    path.write_bytes(whole)
    assert opened == 0
    assert {name: Vault(path, key).get(name).reveal() for name in SECRETS} == SECRETS


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_kill_while_keys_change_leaves_the_old_or_the_new_state(tmp_path: Path) -> None:
    path, source = filled(tmp_path)
    counter, chance = f"file:{tmp_path / 'other' / 'count'}", np.random.default_rng(4)
    keys = set()
    for _ in range(ROUNDS or 15):
        rotating = subprocess.Popen([sys.executable, "-c", ROTATES, source, str(path)], stdout=subprocess.PIPE)
        assert rotating.stdout is not None
        rotating.stdout.readline()  # it runs: one rotation is through
        time.sleep(chance.random() * 0.03)
        rotating.send_signal(signal.SIGKILL)
        rotating.wait()
        rotating.stdout.close()
        vault = Vault(path, vault_key(source), counter=counter)
        assert {name: vault.get(name).reveal() for name in SECRETS} == SECRETS
        keys.add(vault_key(source).raw)
    assert len(keys) == (ROUNDS or 15)
