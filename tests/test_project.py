"""The repository as a whole: its metadata, its locks, its notebooks, and which room may import which."""

import ast
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import check_suppressions
import pytest
from packaging.requirements import Requirement

import btcbot

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
INI = ConfigParser(delimiters=["="])
INI.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = INI["DEFAULT"]
LOCKS = ("base", "dev", "all")

# The rooms in their order: one imports from those before it, and from modules of its own whose notebooks sort before.
ROOMS = (
    "core",
    "market",
    "security",
    "engine",
    "terminal",
    "data",
    "features",
    "strategies",
    "backtest",
    "models",
    "trading",
    "ops",
    "",  # modules at the package's root: the command and what belongs to it
)
SERVER_ROOMS = {"core", "market", "security", "engine", "terminal"}
# Rooms that take arrays and give arrays, and what they may therefore not import.
PURE_ROOMS = {"market", "engine", "features", "strategies"}
OUTSIDE = {"requests", "socket", "http", "urllib", "sqlite3", "duckdb", "subprocess", "flask", "threading", "random", "logging"}


def notebooks() -> list[Path]:
    """Return every notebook of the repository."""
    return sorted(
        path for folder in ("nbs", "papermill_jobs") for path in (ROOT / folder).rglob("*.ipynb") if "checkpoints" not in str(path)
    )


def cells(notebook: Path) -> list[tuple[str, str]]:
    """Return the kind and the text of each cell."""
    return [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]


def module_of(notebook: Path) -> str | None:
    """Return the module that a notebook makes, None for a story or a job."""
    found = (re.search(r"^#\|\s*default_exp\s+(\S+)", text, re.M) for kind, text in cells(notebook) if kind == "code")
    return next((match[1].removesuffix(".__init__") for match in found if match), None)


def code_of(notebook: Path) -> str:
    """Return the code of all cells, without lines that only IPython reads."""
    return "\n".join(re.sub(r"(?m)^(\s*)[%!?].*", r"\1pass", text) for kind, text in cells(notebook) if kind == "code")


def imported(code: str) -> Iterator[str]:
    """Yield the dotted name of everything that `code` imports by its full name, `a.b.c` for `from a.b import c`."""
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    for node in ast.walk(compile(code, "cells", "exec", flags)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def tracked() -> list[Path]:
    """Return the files that git holds or would take."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    return [path for name in listing.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


NOTEBOOKS = notebooks()
NAMES = [path.relative_to(ROOT).as_posix() for path in NOTEBOOKS]
MODULES = {module: path for path in NOTEBOOKS if (module := module_of(path))}


# Metadata


def test_settings_and_pyproject_agree() -> None:
    project = PYPROJECT["project"]
    assert project["name"] == SETTINGS["lib_name"] == SETTINGS["lib_path"] == btcbot.__name__
    assert project["description"] == (btcbot.__doc__ or "").strip().rstrip(".")
    assert PYPROJECT["tool"]["nbdev"].get("lib_path", SETTINGS["lib_path"]) == SETTINGS["lib_path"]
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + project["requires-python"].removeprefix(">=").replace(".", "")
    assert not project.keys() & {"version", "authors", "license", "keywords", "dependencies", "optional-dependencies", "scripts"}
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8") and SETTINGS["license"] == "Apache-2.0"


def test_dynamic_fields_are_those_that_setup_supplies() -> None:
    fields = {
        "version": ["version"],
        "keywords": ["keywords"],
        "author": ["authors"],
        "author_email": ["authors"],
        "license": ["license"],
        "long_description": ["readme"],
        "long_description_content_type": ["readme"],
        "install_requires": ["dependencies"],
        "extras_require": ["optional-dependencies"],
        "entry_points": ["scripts", "entry-points"],
        "packages": [],
        "package_dir": [],
        "package_data": [],
    }
    calls = [node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    arguments = next(call.keywords for call in calls if isinstance(call.func, ast.Name) and call.func.id == "setup")
    supplied = {field for word in arguments for field in fields[str(word.arg)]}
    assert sorted(PYPROJECT["project"]["dynamic"]) == sorted(supplied)


def test_versions_agree() -> None:
    assert version("btcbot") == btcbot.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d[^\]]*)\]", changes, re.M)
    assert "## [Unreleased]" in changes
    assert not released or released[0] == btcbot.__version__


@pytest.mark.parametrize("script", shlex.split(SETTINGS["console_scripts"]))
def test_console_scripts_exist(script: str) -> None:
    module, function = script.partition("=")[2].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_checks_are_as_strict_as_promised() -> None:
    tool = PYPROJECT["tool"]
    assert tool["coverage"]["report"]["fail_under"] >= 95
    assert tool["coverage"]["run"]["branch"] is True
    assert tool["coverage"]["run"]["source"] == tool["mypy"]["files"] == ["btcbot", "mt5_server"]
    assert tool["mypy"]["strict"] is True
    assert "--strict-markers" in tool["pytest"]["ini_options"]["addopts"]


# Locks


@pytest.mark.parametrize("name", LOCKS)
def test_locks_have_hashes_and_no_addresses(name: str) -> None:
    text = (ROOT / f"requirements/{name}.txt").read_text(encoding="utf-8")
    assert "://" not in text and "--index" not in text and "--find-links" not in text
    entries = re.sub(r"\\\n\s*", "", text).splitlines()
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9][a-z0-9.-]*==\S+ ", entry) and "--hash=sha256:" in entry, entry[:80]


def pins(name: str) -> dict[str, set[str]]:
    """Return the versions of each package in a lock: platforms may differ."""
    found: dict[str, set[str]] = {}
    for package, pinned in re.findall(r"^([a-z0-9.-]+)==([^\s;]+)", (ROOT / f"requirements/{name}.txt").read_text(encoding="utf-8"), re.M):
        found.setdefault(package, set()).add(pinned)
    return found


def test_locks_hold_the_same_versions_and_what_settings_ask_for() -> None:
    everything = pins("all")
    for name in LOCKS:
        assert {package: pinned for package, pinned in pins(name).items() if not pinned <= everything[package]} == {}
    keys = ["requirements", *(key for key in SETTINGS if key.startswith("extra_"))]
    for requirement in (Requirement(text) for key in keys for text in shlex.split(SETTINGS[key])):
        pinned = everything[requirement.name.lower().replace("_", "-").replace(".", "-")]
        assert all(requirement.specifier.contains(one) for one in pinned), (str(requirement), pinned)
    assert "tensorflow" not in pins("base") and "pytest" not in pins("base")


# Notebooks


def test_quarto_settings_are_shared() -> None:
    link = ROOT / "nbs/_quarto.yml"
    assert link.is_symlink() and link.readlink() == Path("../_quarto.yml")
    assert "metadata-files: [nbdev.yml, sidebar.yml]" in link.read_text(encoding="utf-8")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_notebooks_are_small_and_clean(notebook: Path) -> None:
    assert notebook.stat().st_size < 400_000
    document = json.loads(notebook.read_text(encoding="utf-8"))
    for cell in document["cells"]:
        assert cell.get("execution_count") is None
        assert all(output.get("execution_count") is None and output["output_type"] != "error" for output in cell.get("outputs", []))
    kind, text = cells(notebook)[0]
    assert kind == "markdown" and text.startswith("# "), "the first cell holds the title"
    if (module := module_of(notebook)) is not None:
        assert re.fullmatch(rf"\d\d_{re.escape(module)}", notebook.stem), f"{notebook.name} makes {module}"
    if notebook.is_relative_to(ROOT / "papermill_jobs"):
        assert sum("parameters" in cell["metadata"].get("tags", []) for cell in document["cells"]) == 1, "one cell is tagged `parameters`"


def test_the_package_is_generated() -> None:
    by_hand = {"__init__.py", "_modidx.py"}
    for path in sorted((ROOT / "btcbot").rglob("*.py")):
        name = path.relative_to(ROOT / "btcbot")
        if str(name) in by_hand or (name.name == "__init__.py" and not path.read_text(encoding="utf-8").strip()):
            continue
        module = ".".join(name.with_suffix("").parts).removesuffix(".__init__")
        assert module in MODULES, f"btcbot/{name} has no notebook"


# Rooms


def room_of(module: str) -> str:
    """Return the room of a module, or of the room itself."""
    return module.split(".")[0] if "." in module or module in ROOMS else ""


def violations(importer: str, code: str) -> list[str]:
    """Return the imports in the code of module `importer` that the order of the rooms does not allow."""
    room, wrong = "mt5_server" if importer == "mt5_server" else room_of(importer), []
    known = {*MODULES, *ROOMS}
    for name in imported(code):
        parts = name.split(".")
        if parts[0] == "mt5_server" and room in ROOMS[:-1]:
            wrong.append(f"{name}: a room does not import the server")
        if parts[0] != "btcbot" or (len(parts) == 2 and parts[1].startswith("__")) or parts == ["btcbot"]:
            continue
        target = next((".".join(parts[1:end]) for end in range(len(parts), 1, -1) if ".".join(parts[1:end]) in known), None)
        if target is None:
            wrong.append(f"{name}: name the module, not the package's root")
        elif room == "mt5_server":
            if room_of(target) not in SERVER_ROOMS:
                wrong.append(f"{name}: the server imports from {', '.join(sorted(SERVER_ROOMS))} only")
        elif target != importer:
            mine, theirs = ROOMS.index(room), ROOMS.index(room_of(target))
            if theirs > mine or (theirs == mine and not (target in MODULES and MODULES[target].name < MODULES[importer].name)):
                wrong.append(f"{name}: {importer} comes before it")
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_a_notebook_imports_from_rooms_above(module: str) -> None:
    assert room_of(module) in ROOMS
    code = code_of(MODULES[module])
    made = ROOT / "btcbot" / module.replace(".", "/")
    exported = (made / "__init__.py" if made.is_dir() else made.with_name(f"{made.name}.py")).read_text(encoding="utf-8")
    # An example may start the server that its room talks to; what is exported may not.
    assert not any(name.split(".")[0] == "mt5_server" for name in imported(exported))
    assert [name for name in violations(module, code) if not name.startswith("mt5_server")] == []
    if room_of(module) in PURE_ROOMS:
        assert [name for name in imported(exported) if name.split(".")[0] in OUTSIDE] == []


def test_the_server_imports_a_light_set() -> None:
    for path in sorted((ROOT / "mt5_server").rglob("*.py")):
        assert violations("mt5_server", path.read_text(encoding="utf-8")) == [], path.name


def test_the_room_rule_finds_what_it_should() -> None:
    assert violations("core.jit", "from btcbot.market.clock import to_utc") != []
    assert violations("core.errors", "import btcbot.core.jit") != []
    assert violations("core.jit", "from btcbot.core.errors import BtcbotError") == []
    assert violations("mt5_server", "from btcbot.data import store") != []
    assert violations("mt5_server", "from btcbot.core.errors import BtcbotError\nfrom btcbot import __version__") == []
    assert violations("market.clock", "def f():\n    import btcbot.data.store") != []
    assert violations("backtest.run", "from btcbot import Backtester") != []


# What must not be in the repository


def test_no_file_names_the_machine_it_was_made_on() -> None:
    temporary = Path(tempfile.gettempdir())
    everywhere = {"/", "/usr", "/usr/local", "/home", "/opt", "/srv", str(temporary), str(temporary.resolve())}
    homes = {str(Path.home()), str(ROOT), str(ROOT.parent), sys.prefix, sys.base_prefix} - everywhere
    pip = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    settings = pip + " ".join(value for key, value in os.environ.items() if key.startswith(("PIP_", "UV_")))
    hosts = {urlsplit(url).hostname or "" for url in re.findall(r"https?://[^\s'\"]+", settings)} - {""}
    pattern = re.compile("|".join(rf"(?<![\w./-]){re.escape(home)}(?![\w.-])" for home in sorted(homes)))
    for path in tracked():
        text = path.read_bytes().decode(errors="ignore")
        assert not pattern.search(text), (path, pattern.search(text))
        assert not [host for host in hosts if host in text], path


# The checker of suppressed checks


def test_suppressions_are_found_with_their_reasons() -> None:
    code = """
x = f()  # type: ignore[no-any-return]  # the stub is wrong
# A shell is meant.
y = g()  # noqa: S602
z = "# noqa: S603 in a string is none"
@pytest.mark.skipif(sys.platform == "win32", reason="no symlinks")
def test_a(): pytest.skip("no network")
@pytest.mark.xfail
def test_b(): ...
if debug:  # pragma: no cover
    h()
"""
    found = [(entry.what, entry.reason) for entry in check_suppressions.in_python("a.py", code)]
    assert sorted(found) == [
        ("noqa: S602", "A shell is meant."),
        ("pragma: no cover", ""),
        ("pytest.mark.skipif(sys.platform == 'win32')", "no symlinks"),
        ("pytest.mark.xfail", ""),
        ("pytest.skip()", "no network"),
        ("type: ignore[no-any-return]", "the stub is wrong"),
    ]
    sources = [
        "#| eval: false\n# Needs a Windows terminal.\nimport MetaTrader5",
        "#| slow\nf()",
        "%matplotlib inline\ng()  # noqa: F821 - shown",
    ]
    book = json.dumps({"cells": [{"cell_type": "code", "source": [source]} for source in sources]})
    found = [(entry.what, entry.reason) for entry in check_suppressions.in_notebook("a.ipynb", book, frozenset({"slow"}))]
    assert found == [("#| eval: false", "Needs a Windows terminal."), ("#| slow", ""), ("noqa: F821", "shown")]
    settings = '[tool.mypy]\nstrict = true\nwarn_return_any = false # too many\n[tool.ruff.lint]\n# Prose.\nignore = ["A1", "B2"]\n'
    found = [(entry.what, entry.reason) for entry in check_suppressions.in_settings("pyproject.toml", settings)]
    assert sorted(found) == [("tool.mypy.warn_return_any: False", "too many"), ("tool.ruff.lint.ignore: A1 B2", "Prose.")]


# Set-up


def stand_in(folder: Path, name: str, script: str) -> None:
    """Write a command."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def set_up(folder: Path, search: Path, python: str = "") -> subprocess.CompletedProcess[str]:
    """Run requirements/venv.sh in `folder`, where only the commands in `search` and the system's simplest are found."""
    for tool in ("cat", "sh"):
        shutil.copy(str(shutil.which(tool)), search / tool)
    environment = {"PATH": str(search), "PYTHON": python, "HOME": str(folder)}
    return subprocess.run(
        ["sh", str(ROOT / "requirements/venv.sh"), ".venv"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_set_up_takes_the_first_python_that_runs(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    stand_in(tools, "python3", "echo no version is set >&2; exit 127")
    stand_in(tools, "python3.12", f'exec {shlex.quote(sys.executable)} "$@"')
    done = set_up(tmp_path, tools)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".venv/bin/python").exists()
    assert "python3.12" not in done.stderr and len(done.stdout.splitlines()) == 1
    (tmp_path / ".venv/kept").touch()
    assert set_up(tmp_path, tools).stdout == ""
    assert (tmp_path / ".venv/kept").exists()
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(tmp_path / ".venv", moved / ".venv")
    assert set_up(moved, tools).returncode == 0
    assert not (moved / ".venv/kept").exists()  # made anew: its scripts named the old place


def test_set_up_says_in_one_line_what_is_missing(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    stand_in(tools, "python3", "exit 1")
    done = set_up(tmp_path, tools)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "No Python 3.11 or newer was found" in done.stderr
    done = set_up(tmp_path, tools, python="python3")
    assert done.returncode == 1 and done.stderr == "PYTHON=python3 is not a Python 3.11 or newer that runs.\n"
    stand_in(tools, "python3.11", 'case "$2" in *ensurepip*) exit 1;; esac')
    done = set_up(tmp_path, tools)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "sudo apt install python3-venv" in done.stderr
