#!/bin/sh
# Make the virtual environment: sh requirements/venv.sh FOLDER. $PYTHON names the interpreter; without it, the first one that runs and is new enough.
set -eu
venv=$1
here=$(pwd -P)

# A command by that name is not enough: a version manager's stand-in may refuse to run, and an older Python may come first.
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
fail() { echo "$1" >&2; exit 1; }

# Scripts inside a virtual environment name its path: one that was moved, or whose interpreter is gone, is made anew.
made_here=yes
if [ -f "$venv/.made" ] && [ "$(cat "$venv/.made")" != "$here" ]; then made_here=no; fi

if [ "$made_here" = no ] || ! new_enough "$venv/bin/python"; then
    found=
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.11 or newer that runs."
        found=$PYTHON
    else
        for candidate in python3 python3.13 python3.12 python3.11; do
            if new_enough "$candidate"; then found=$candidate; break; fi
        done
        [ -n "$found" ] || fail "No Python 3.11 or newer was found: install one (Debian, Ubuntu: sudo apt install python3 python3-venv; macOS: brew install python@3.13), or name it: make PYTHON=/path/to/python3."
    fi
    "$found" -c 'import ensurepip, venv' >/dev/null 2>&1 || fail "$found can't make a virtual environment; install python3-venv: sudo apt install python3-venv"
    echo "Making $venv with $("$found" --version)"
    "$found" -m venv --clear "$venv"
fi
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip --default-pip >/dev/null
echo "$here" > "$venv/.made"
