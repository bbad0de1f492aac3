"""Run a command and fail if it changed the notebooks, the jobs or the package: python tests/check_unchanged.py COMMAND [ARGUMENT ...]"""

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WATCHED = ("nbs", "papermill_jobs", "btcbot")


def fingerprints() -> dict[str, str]:
    """Return the hash of each watched file: a tree with uncommitted work is as good as a committed one."""
    files = [path for folder in WATCHED for ending in ("ipynb", "py") for path in (ROOT / folder).rglob(f"*.{ending}")]
    return {
        path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if ".ipynb_checkpoints" not in path.parts
    }


def main(command: list[str]) -> int:
    """Run `command` and return 0 if it succeeded and changed nothing."""
    before = fingerprints()
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        return done.returncode
    after = fingerprints()
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    for name in changed:
        print(f"{Path(command[0]).name} changed {name}", file=sys.stderr)
    if changed:
        print("Those were not as the tools leave them, and now they are: keep the difference, or put the notebook right.", file=sys.stderr)
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
