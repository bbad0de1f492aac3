"""Reads the faults of `engine.txt`, and knows which tests could find them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple


class Mutant(NamedTuple):
    """A text of a file of `btcbot`, what it is replaced by, and which rule that breaks."""

    path: str
    old: str
    new: str
    rule: str


def read_mutants(text: str) -> dict[str, Mutant]:
    """Read a list of faults: `== file`, then `name: rule`, lines with `- ` and lines with `+ ` for each."""
    found: dict[str, Mutant] = {}
    for path, faults in re.findall(r"^== (\S+)\n(.*?)(?=^== |\Z)", text, re.MULTILINE | re.DOTALL):
        for name, rule, old, new in re.findall(r"^(\S+): (.+)\n((?:- .*\n)+)((?:\+ .*\n)+)", faults, re.MULTILINE):
            if name in found:
                raise ValueError(f"two faults are called {name}")
            before, after = ("\n".join(line[2:] for line in lines.splitlines()) for lines in (old, new))
            found[name] = Mutant(path, before, after, rule)
    return found


MUTANTS = read_mutants(Path(__file__).with_name("engine.txt").read_text(encoding="utf-8"))

# Tests that could find a fault of a file, the quickest first. The comparison of backtester and trader is none of them: both use the engine.
_LEDGERS, _REFERENCE = "tests/backtest/test_ledgers.py", "tests/test_twin_reference.py"
_LIMITS, _SIZES = "tests/backtest/test_limits.py", "tests/backtest/test_sizes.py"
_ORDERS, _SHORT_WAY = "tests/test_twin_orders_reference.py", "tests/backtest/test_calm_bars.py"
TESTS: dict[str, tuple[str, ...]] = {
    "engine/conditions.py": (
        _LEDGERS,
        "nbs/10_engine.conditions.ipynb",
        "nbs/11_engine.account.ipynb",
        "nbs/12_engine.bars.ipynb",
        _REFERENCE,
    ),
    "engine/account.py": (_LEDGERS, "nbs/11_engine.account.ipynb", "nbs/11_engine.deals.ipynb", _REFERENCE),
    "engine/deals.py": (_LEDGERS, "nbs/11_engine.deals.ipynb", _REFERENCE),
    "engine/bars.py": (_LEDGERS, "nbs/12_engine.bars.ipynb", _SHORT_WAY, _REFERENCE, _ORDERS),
    "engine/limits.py": (_LEDGERS, "nbs/11_engine.limits.ipynb", "nbs/11_engine.risk.ipynb", _LIMITS),
    "engine/lots.py": (_LEDGERS, "nbs/11_engine.lots.ipynb", _SIZES),
    "engine/risk.py": (_LEDGERS, "nbs/11_engine.risk.ipynb", _LIMITS),
    "backtest/playback.py": (_LEDGERS, _SHORT_WAY),
    "backtest/bounds.py": (_LEDGERS, "nbs/50_backtest.bounds.ipynb"),
    "engine/orders.py": ("nbs/12_engine.orders.ipynb", _ORDERS),
}
