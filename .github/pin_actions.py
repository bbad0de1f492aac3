"""Pin the actions of the workflows to the commits of their releases (`make pin`); it asks GitHub through `gh`, which must be signed in.

`uses: owner/action@v4` and `uses: owner/action@<commit> # v4.1.2` both become the commit of the newest release of that major version,
with its tag behind.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

WORKFLOWS = Path(__file__).resolve().parent / "workflows"
USES = re.compile(
    r"(?P<head>uses:\s*)(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(?P<path>[\w./-]*)@(?P<ref>[\w.-]+)(?:\s*#\s*(?P<tag>v?[\w.-]+))?"
)


def ask(path: str) -> str:
    """Return what GitHub's API says under `path`."""
    command = ["gh", "api", "--paginate", "--slurp", path]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - a fixed program, no shell


def newest(owner: str, name: str, wanted: str) -> tuple[str, str]:
    """Return the tag and the commit of the newest release whose major version is that of `wanted`."""
    major = wanted.removeprefix("v").split(".")[0]
    refs = [ref for page in json.loads(ask(f"repos/{owner}/{name}/git/matching-refs/tags/v{major}")) for ref in page]
    tags = [ref["ref"].removeprefix("refs/tags/") for ref in refs]
    full = [tag for tag in tags if re.fullmatch(rf"v{major}\.\d+\.\d+", tag)]
    tag = max(full, key=lambda text: [int(part) for part in text[1:].split(".")]) if full else wanted
    (commit,) = json.loads(ask(f"repos/{owner}/{name}/commits/{tag}"))
    return tag, str(commit["sha"])


def main() -> None:
    """Rewrite each workflow and say what changed."""
    for workflow in sorted(WORKFLOWS.glob("*.yml")):
        text = workflow.read_text(encoding="utf-8")
        for match in {found[0]: found for found in USES.finditer(text)}.values():
            tag, commit = newest(match["owner"], match["name"], match["tag"] or match["ref"])
            pinned = f"{match['head']}{match['owner']}/{match['name']}{match['path']}@{commit} # {tag}"
            if pinned != match[0]:
                print(f"{workflow.name}: {match['owner']}/{match['name']}{match['path']} {tag} {commit}")
                text = text.replace(match[0], pinned)
        workflow.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError:
        sys.exit("gh was not found: install the GitHub CLI and sign in with `gh auth login`.")
    except subprocess.CalledProcessError as error:
        sys.exit(f"gh failed: {error.stderr.strip()}")
