"""Write the locks: the newest releases that settings.ini admits, with hashes, for every platform. Run by `make lock`.

With `--keep` what is locked stays at its version, and only what settings.ini asks for anew is added.
"""

import shlex
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).parent
BUILD = "setuptools>=77"  # `pip install -e .` without build isolation needs it
BASE = ("server", "notebooks")
LOCKS = {"base": BASE, "dev": (*BASE, "timescale", "versions", "ml", "deep", "explain", "dev"), "all": None}


def requirements(extras: tuple[str, ...] | None) -> str:
    "The requirement lines of the base set and `extras` (all of them when None)."
    ini = ConfigParser(delimiters=["="])
    ini.read(HERE.parent / "settings.ini", encoding="utf-8")
    cfg = ini["DEFAULT"]
    keys = [k for k in cfg if k.startswith("extra_") and (extras is None or k.removeprefix("extra_") in extras)]
    return "\n".join([BUILD, *shlex.split(cfg["requirements"]), *(r for k in keys for r in shlex.split(cfg[k]))]) + "\n"


def main() -> None:
    "Lock everything first, then each smaller set to the same versions."
    with tempfile.TemporaryDirectory() as folder:
        for name in sorted(LOCKS, key=lambda n: LOCKS[n] is not None):
            source, target = Path(folder) / f"{name}.in", HERE / f"{name}.txt"
            source.write_text(requirements(LOCKS[name]), encoding="utf-8")
            command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--generate-hashes"]
            command += ["--python-version", "3.11", "--no-emit-index-url", "--no-annotate", "--no-header"]
            command += ["--output-file", str(target), str(source)]
            upgrade = [] if "--keep" in sys.argv else ["--upgrade"]
            command += upgrade if name == "all" else ["--constraint", str(HERE / "all.txt")]
            subprocess.run(command, check=True)  # noqa: S603 - a fixed program, no shell
            print(f"{target.name}: {sum('==' in line for line in target.read_text().splitlines())} packages")


if __name__ == "__main__":
    main()
