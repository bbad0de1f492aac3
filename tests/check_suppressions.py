"""List each check that is switched off somewhere, with its reason, and compare the list with tests/suppressions.txt.

A new one, one that is gone and one without a reason fail. After a change that is meant: python tests/check_suppressions.py --write
"""

import ast
import difflib
import io
import json
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("suppressions.txt")
# btcbot/ is not among them: it is made from nbs/.
FOLDERS = ("nbs", "papermill_jobs", "mt5_server", "tests", "benchmarks", "requirements", "deploy", ".github")

COMMENT = re.compile(
    r"#\s*(?P<what>(?:(?:ruff|flake8)\s*:\s*)?noqa\b(?:\s*:\s*[A-Z]+\d+(?:[\s,]+[A-Z]+\d+)*)?"
    r"|type\s*:\s*ignore\b(?:\[[^\]]*\])?|mypy\s*:\s*[\w-]+(?:\s*=\s*\S+)?|pyright\s*:\s*[\w-]+(?:\[[^\]]*\])?"
    r"|pragma\s*:\s*no\s+(?:cover|branch)\b|fmt\s*:\s*(?:off|skip)\b|nosec\b)"
)
DIRECTIVE = re.compile(r"#\|\s*(?P<name>[\w-]+)\s*:?\s*(?P<value>.*)")
SKIPS = {"skip", "skipif", "xfail", "importorskip", "skipIf", "skipUnless", "skipTest", "expectedFailure"}
SKIP_ROOTS = {"pytest", "unittest", "self", "mark"}

# Settings of pyproject.toml that switch a check off. How strict the checks are is asserted in test_project.py.
SETTINGS = (
    "tool.nbdev.tst_flags",
    "tool.coverage.run.omit",
    "tool.coverage.report.omit",
    "tool.coverage.report.exclude_lines",
    "tool.coverage.report.exclude_also",
    "tool.coverage.report.partial_branches",
    "tool.coverage.report.partial_also",
    "tool.coverage.report.ignore_errors",
    "tool.pytest.ini_options.addopts",
    "tool.pytest.ini_options.filterwarnings",
    "tool.ruff.exclude",
    "tool.ruff.extend-exclude",
    "tool.ruff.lint.ignore",
    "tool.ruff.lint.extend-ignore",
    "tool.ruff.lint.per-file-ignores",
    "tool.ruff.lint.extend-per-file-ignores",
    "tool.mypy",
)


class Suppression(NamedTuple):
    """One check that is switched off."""

    path: str
    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what} -- {self.reason or 'NO REASON'}"


def _above(lines: list[str], line: int) -> str:
    """Return the block of comment lines that ends just above `line` (counted from 0), as one line."""
    block: list[str] = []
    for text in reversed(lines[:line]):
        if not text.strip().startswith("#") or text.strip().startswith("#|"):
            break
        block.insert(0, text.strip().lstrip("# "))
    return " ".join(block)


def _in_comments(path: str, code: str) -> Iterator[Suppression]:
    """Yield what comments switch off; strings that merely show such a comment are not comments."""
    lines = code.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT and (found := list(COMMENT.finditer(token.string))):
            reason = COMMENT.sub("", token.string).strip("#:- ") or _above(lines, token.start[0] - 1)
            for match in found:
                yield Suppression(path, match["what"], reason)


def _dotted(node: ast.expr) -> str:
    """Return `a.b.c` for a chain of names, or nothing."""
    if isinstance(node, ast.Name):
        return node.id
    inner = _dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner and isinstance(node, ast.Attribute) else ""


def _is_skip(name: str) -> bool:
    """Say whether a dotted name is one of the ways to skip a test or to expect its failure."""
    root, _, last = name.rpartition(".")
    return last in SKIPS and bool(SKIP_ROOTS & set(root.split(".")))


def _in_calls(path: str, code: str) -> Iterator[Suppression]:
    """Yield the tests that are skipped or expected to fail."""
    tree = compile(code, path, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert isinstance(tree, ast.Module)
    lines = code.splitlines()
    called: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("pytest", "unittest"):
            for alias in node.names:
                if alias.name in SKIPS:
                    # Called by its short name it would not be seen here, so it is refused: an entry without a reason.
                    yield Suppression(path, f"from {node.module} import {alias.name}", "")
        elif isinstance(node, ast.Call) and _is_skip(_dotted(node.func)):
            called.add(id(node.func))
            reasons = [word.value for word in node.keywords if word.arg in ("reason", "msg")]
            if not reasons and _dotted(node.func).endswith((".skip", ".xfail", ".skipTest")):
                reasons = node.args[:1]
            reason = ast.unparse(reasons[0]).strip("'\"") if reasons else _above(lines, node.lineno - 1)
            shown = [ast.unparse(argument) for argument in node.args if argument not in reasons]
            yield Suppression(path, f"{_dotted(node.func)}({', '.join(shown)})", reason)
        elif isinstance(node, ast.Attribute) and id(node) not in called and _is_skip(_dotted(node)):
            yield Suppression(path, _dotted(node), _above(lines, node.lineno - 1))


def in_python(path: str, code: str) -> list[Suppression]:
    """Return what `code` switches off."""
    return [*_in_comments(path, code), *_in_calls(path, code)]


def in_notebook(path: str, text: str, flags: frozenset[str]) -> list[Suppression]:
    """Return what the cells of a notebook switch off, `flags` being the directives that leave a cell out of a run."""
    found: list[Suppression] = []
    for cell in json.loads(text)["cells"]:
        lines = "".join(cell["source"]).splitlines()
        if cell["cell_type"] != "code":
            found += [Suppression(path, line.strip(), "") for line in lines if re.match(r"\s*skip_exec\s*:\s*true", line)]
            continue
        prose = [line.lstrip("# ") for line in lines if line.startswith("# ")]
        for match in filter(None, map(DIRECTIVE.match, lines)):
            if match["name"] in flags or (match["name"] == "eval" and match["value"].strip().lower() == "false"):
                found.append(Suppression(path, match[0].strip(), prose[0] if prose else ""))
        code = "\n".join(re.sub(r"^(\s*)[%!?].*", r"\1pass", line) for line in lines)
        if lines and lines[0].startswith("%%"):
            continue
        found += in_python(path, code + "\n")
    return found


def _harmless(key: str, node: Any) -> bool:
    """Say whether a setting switches nothing off: mypy's `strict = true`, a pytest filter that makes a warning an error."""
    if key == "addopts":
        return not re.search(r"(^|\s)(-k|-m|-p|--ignore\S*|--deselect|--continue-on-collection-errors)\b", str(node))
    if key == "filterwarnings":
        return not any(str(item).startswith(("ignore", "once", "default")) for item in node)
    return key == "files" or (node is True and not key.startswith(("ignore_", "allow_", "disable_", "implicit_")))


def _setting_reason(lines: list[str], key: list[str], value: str) -> str:
    """Return the comment at a setting's value, else above it, else above its key."""
    table = next((i for i, line in enumerate(lines) if line.strip().strip("[]") == ".".join(key[:-1])), 0)
    name = next((i for i in range(table, len(lines)) if re.match(rf'"?{re.escape(key[-1])}"?\s*=', lines[i])), table)
    shown = json.dumps(value)
    at = next((i for i in range(name, len(lines)) if shown in lines[i] or value in lines[i]), name)
    trailing = re.search(r"[\]\[,\"'\w]\s+#\s*(.+)$", lines[at])
    return trailing[1] if trailing else _above(lines, at) or _above(lines, name)


def in_settings(path: str, text: str) -> list[Suppression]:
    """Return what the settings of a pyproject.toml switch off."""
    lines = text.splitlines()
    found: list[Suppression] = []

    def values(key: list[str], node: Any) -> None:
        if isinstance(node, dict):
            for name, inner in node.items():
                values([*key, name], inner)
        elif isinstance(node, list) and node and isinstance(node[0], dict):
            start = 0
            for inner in node:
                start = next(i for i in range(start, len(lines)) if lines[i].strip() == f"[[{'.'.join(key)}]]") + 1
                settings = ", ".join(f"{name} = {json.dumps(value)}" for name, value in inner.items() if name != "module")
                modules = inner["module"] if isinstance(inner["module"], list) else [inner["module"]]
                found.append(Suppression(path, f"{'.'.join(key)}: {settings} for {' '.join(modules)}", _above(lines, start - 1)))
        elif not _harmless(key[-1], node):
            grouped: dict[str, list[str]] = {}
            reason = ""
            for item in node if isinstance(node, list) else [node]:
                reason = _setting_reason(lines, key, str(item)) or reason  # in a list, the comment of the value before holds
                grouped.setdefault(reason, []).append(str(item))
            found.extend(Suppression(path, f"{'.'.join(key)}: {' '.join(items)}", why) for why, items in grouped.items())

    for setting in SETTINGS:
        key, node = setting.split("."), tomllib.loads(text)
        for part in key:
            node = node.get(part, {})
        values(key, node)
    return found


def collect(root: Path = ROOT) -> list[Suppression]:
    """Return everything that is switched off below `root`, sorted."""
    settings = (root / "pyproject.toml").read_text(encoding="utf-8")
    flags = frozenset(tomllib.loads(settings)["tool"]["nbdev"]["tst_flags"].split())
    found = in_settings("pyproject.toml", settings)
    for file in sorted([root / "setup.py", *(path for folder in FOLDERS for path in (root / folder).rglob("*"))]):
        name = file.relative_to(root).as_posix()
        if file.suffix == ".py":
            found += in_python(name, file.read_text(encoding="utf-8"))
        elif file.suffix == ".ipynb" and ".ipynb_checkpoints" not in file.parts:
            found += in_notebook(name, file.read_text(encoding="utf-8"), flags)
        elif file.name == ".notest":
            found.append(Suppression(name, "nbdev-test leaves the notebooks of this folder out", file.read_text(encoding="utf-8").strip()))
    return sorted(found)


def main(arguments: list[str]) -> int:
    """Print the list and return 0 if it is the committed one and every entry has a reason."""
    found = collect()
    lines = [str(entry) for entry in found]
    if "--write" in arguments:
        LIST.write_text("\n".join(lines) + "\n", encoding="utf-8")
    known = LIST.read_text(encoding="utf-8").splitlines() if LIST.exists() else []
    print("\n".join(lines))
    print(f"{len(lines)} suppressed checks")
    bare = [str(entry) for entry in found if not entry.reason]
    difference = list(difflib.unified_diff(known, lines, LIST.name, "found", lineterm="", n=0))
    if difference:
        print("\n".join(difference), file=sys.stderr)
        print("The list has changed. If that is meant: python tests/check_suppressions.py --write, and commit it.", file=sys.stderr)
    if bare:
        print("\n".join(["Each needs its reason, in the same line or in the comment above:", *bare]), file=sys.stderr)
    return 1 if difference or bare else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
