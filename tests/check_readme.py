"""README.md is nbs/index.ipynb as Markdown. `python tests/check_readme.py` compares, `--write` writes it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def cell_text(cell: dict[str, object]) -> str:
    """Return a cell as Markdown: prose as it is, code fenced, its text output indented."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return re.sub(r"\]\(images/", "](nbs/images/", source)
    parts = [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        text = "".join(output.get("data", {}).get("text/plain", output.get("text", "")))
        parts.append("\n".join(f"    {line}".rstrip() for line in text.rstrip().splitlines()))
    return "\n\n".join(parts)


def readme() -> str:
    """Return what README.md must be."""
    notebook = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))
    head = "<!-- Made from nbs/index.ipynb by `make readme`; edit the notebook. -->\n\n"
    return head + "\n\n".join(cell_text(cell) for cell in notebook["cells"]) + "\n"


if __name__ == "__main__":
    target = ROOT / "README.md"
    if "--write" in sys.argv:
        target.write_text(readme(), encoding="utf-8")
    elif target.read_text(encoding="utf-8") != readme():
        sys.exit("README.md is not what nbs/index.ipynb says: run `make readme`.")
