"""Package metadata: `settings.ini` holds it, `pyproject.toml` names the fields that come from here."""

import re
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
ini = ConfigParser(delimiters=["="])
ini.read(root / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
lib = cfg["lib_path"]
init = (root / lib / "__init__.py").read_text(encoding="utf-8")
extras = {key.removeprefix("extra_"): shlex.split(value) for key, value in cfg.items() if key.startswith("extra_")}
extras["all"] = sorted({requirement for requirements in extras.values() for requirement in requirements})

setup(
    version=re.search(r'__version__ = "([^"]+)"', init).group(1),
    keywords=cfg["keywords"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    license=cfg["license"],
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    # The job notebooks travel inside the package, so that an installed `btcbot demo` finds them.
    packages=[*find_packages(include=[f"{lib}*", "mt5_server*"]), f"{lib}.papermill_jobs"],
    package_dir={f"{lib}.papermill_jobs": "papermill_jobs"},
    package_data={f"{lib}.papermill_jobs": ["*.ipynb"], lib: ["py.typed"], "mt5_server": ["py.typed"]},
    install_requires=shlex.split(cfg["requirements"]),
    extras_require=extras,
    entry_points={
        "console_scripts": shlex.split(cfg["console_scripts"]),
        "nbdev": [f"{lib}={lib}._modidx:d"],
    },
)
