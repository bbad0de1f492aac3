"""Plant one fault at a time into a copy of the package: a test must fail, and not the one that compares backtester and trader.

python -m tests.mutants.campaign [NAME ...] [--jobs 2]     a table of the faults, the tests that found them, and seconds; 1 if one survives
"""

import argparse
import compileall
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.mutants.engine import MUTANTS, TESTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "btcbot"
LIMIT_S = 240


class Verdict(NamedTuple):
    """What became of a fault."""

    name: str
    caught_by: str  # the first test that failed; empty if none did
    seconds: float
    said: str  # by the tests


def mutated(mutant: Mutant) -> str:
    """Return the text of the mutant's file with the fault in it, which must fit exactly one place and be a program."""
    text = (PACKAGE / mutant.path).read_text(encoding="utf-8")
    count = text.count(mutant.old)
    if count != 1:
        raise ValueError(f"{mutant.path}: {mutant.old!r} stands there {count} times, not once")
    changed = text.replace(mutant.old, mutant.new)
    compile(changed, mutant.path, "exec")
    return changed


def run_tests(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run tests on the copy of the package in `folder` until one fails; return pytest's exit code and what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE_", "COV_", "PYTEST_"))}
    environment |= {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(folder), "BTCBOT_CACHE": str(folder / "cache"), "BTCBOT_ROUNDS": "20"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plugins take longer than the tests
    options = ["-q", "-x", "-rfE", "--tb=no", "--assert=plain", "-p", "btcbot.nbtest", "-p", "no:cacheprovider", "-m", "not jit"]
    command = [sys.executable, "-m", "pytest", *options, f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}"]
    try:
        done = subprocess.run(
            [*command, *(str(ROOT / test) for test in tests)], cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return 1, f"FAILED time-out::{LIMIT_S} s"
    return done.returncode, done.stdout + done.stderr


def judge(name: str, master: Path) -> Verdict:
    """Plant the fault `name` into a copy of `master`, and run the tests that could find it."""
    began, mutant = time.monotonic(), MUTANTS[name]
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        shutil.copytree(master, Path(folder) / "btcbot")
        (Path(folder) / "btcbot" / mutant.path).write_text(mutated(mutant), encoding="utf-8")
        first, *others = TESTS[mutant.path]
        code, said = run_tests(Path(folder), [first])
        if code == 0 and others:
            code, said = run_tests(Path(folder), others)
    found = re.search(r"^FAILED (?:\S*/)?([^/\s]+?::[^\[\s]+)", said, re.MULTILINE)
    is_caught = code == 1 and found is not None
    return Verdict(name, found[1] if found is not None and is_caught else "", time.monotonic() - began, said)


def prepare(folder: Path) -> Path:
    """Return a copy of the package in `folder`, compiled by what the source says: mutants come within a second of each other."""
    master = folder / "btcbot"
    shutil.copytree(PACKAGE, master, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(master, quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    return master


def judge_all(names: Sequence[str], jobs: int) -> Iterator[Verdict]:
    """Judge faults a few at a time; the first verdict is about the code as it is, and the last one if that fails."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        master, began = prepare(Path(folder)), time.monotonic()
        tests = dict.fromkeys(test for name in names for test in TESTS[MUTANTS[name].path])
        code, said = run_tests(Path(folder), list(tests))
        yield Verdict("", "" if code == 0 else "the code as it is fails", time.monotonic() - began, said)
        if code == 0:
            with ThreadPoolExecutor(jobs) as pool:
                yield from pool.map(lambda name: judge(name, master), names)


def campaign(names: Sequence[str], jobs: int) -> int:
    """Print the table; return 0 if each fault was found and the code as it is has none."""
    began, by, survivors = time.monotonic(), Counter[str](), []
    for verdict in judge_all(names, jobs):
        if not verdict.name:
            if verdict.caught_by:
                print(verdict.said, "The tests fail without a fault.", sep="\n")
                return 1
            print(
                f"without a fault: passed, {verdict.seconds:.1f} s\n\n| fault | rule | caught by | s |\n| --- | --- | --- | --- |",
                flush=True,
            )
            continue
        mutant = MUTANTS[verdict.name]
        print(
            f"| {mutant.path.split('/')[-1]} {verdict.name} | {mutant.rule} | {verdict.caught_by or 'SURVIVED'} | {verdict.seconds:.1f} |",
            flush=True,
        )
        by[verdict.caught_by.split("::")[0]] += 1
        if not verdict.caught_by:
            survivors.append(verdict)
    print(f"\n{len(names) - len(survivors)} of {len(names)} caught in {time.monotonic() - began:.0f} s")
    print(", ".join(f"{count} by {test}" for test, count in by.most_common() if test))
    for verdict in survivors:
        print(f"\n{verdict.name} survived: {MUTANTS[verdict.name]}\n{verdict.said[-800:]}")
    return int(bool(survivors))


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *MUTANTS], metavar="NAME", help="faults to plant (default: all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time")
    given = parser.parse_args()
    return campaign(given.names or list(MUTANTS), given.jobs)


if __name__ == "__main__":
    sys.exit(main())
