# btcbot: `make demo`, `make test`, `make lab`; `make help` lists the rest. Works with GNU make 3.81 (macOS).

.DEFAULT_GOAL := help
.PHONY: help setup demo test lab bench parity honesty faults chaos mutants docs readme lock export notebooks format pin hook audit sbom zizmor clean
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
# Twice quiet: warnings about an index are not shown, errors are.
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check
# What the editable install of this package is made from.
PACKAGE := settings.ini setup.py pyproject.toml btcbot/__init__.py
UNCHANGED := $(BIN)/python tests/check_unchanged.py
# An environment that was moved, or whose interpreter is gone, is set up again.
ifneq ($(shell $(BIN)/python -c 'print("runs")' 2>/dev/null):$(shell cat $(VENV)/.made 2>/dev/null),runs:$(CURDIR))
STALE := $(shell rm -f $(VENV)/.base $(VENV)/.dev $(VENV)/.external)
.PHONY: $(VENV)/.made
endif

help:
	@echo "make demo [DATA=folder or file] [FROM=2019-01-01] [TO=2021-01-01] [SEED=1] [STRATEGY=name] [ZONE=UTC]   the trading loop, end to end"
	@echo "make test        every check, as in continuous integration"
	@echo "make lab         JupyterLab, opened on the tutorials"
	@echo "make setup       .venv with the base set, and nothing more"
	@echo "make export      notebooks to btcbot/, then clean them"
	@echo "make notebooks   run the notebooks and keep their outputs"
	@echo "make format      format and fix what ruff can"
	@echo "make bench       timings, reported and never asserted"
	@echo "make parity [ROUNDS=500]   long seeded comparisons, of which make test runs a sample"
	@echo "make honesty [SEED=1]   the statistics on markets without an edge, and with one of known size (most of an hour)"
	@echo "make faults [SCHEDULES=2000]   orders under failures and kills, then the planted bugs that these must find"
	@echo "make chaos [N=10000] [SEED=7]   the whole trader under all faults at once, then its planted bugs; or one schedule with its trace"
	@echo "make mutants     faults of one line in the account and the decisions, each of which a test must find"
	@echo "make readme      README.md from nbs/index.ipynb"
	@echo "make docs        the documentation site in _docs (needs Quarto)"
	@echo "make lock        lock the newest releases that settings.ini admits"
	@echo "make pin         pin the actions of .github/workflows by commit (needs gh, signed in)"
	@echo "make hook        refuse secrets before each commit here"
	@echo "make audit       known holes in what is locked (pip-audit; needs internet)"
	@echo "make sbom        a list of what is locked, CycloneDX, in sbom.json (needs internet)"
	@echo "make zizmor      holes in the workflows (needs internet the first time)"
	@echo "make clean       remove what can be made again, except .venv and runs"

# Set-up. Each stamp is younger than what it was made from, so a changed lock installs again.

$(VENV)/.made:
	@PYTHON="$(PYTHON)" sh requirements/venv.sh $(VENV)

$(VENV)/.base: $(VENV)/.made requirements/base.txt $(PACKAGE)
	@echo "Installing the base set (requirements/base.txt); the first time takes a minute or two"
	@$(PIP_INSTALL) --require-hashes -r requirements/base.txt
	@$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base requirements/dev.txt
	@echo "Installing the development set (requirements/dev.txt)"
	@$(PIP_INSTALL) --require-hashes -r requirements/dev.txt
	@touch $@

# Programs that others wrote for the MetaTrader5 package, run unmodified by the tests; in a folder of their own, without what they require.
$(VENV)/.external: $(VENV)/.dev requirements/external.txt
	@rm -rf $(VENV)/external
	@$(BIN)/uv pip install -q --no-deps --require-hashes --target $(VENV)/external -r requirements/external.txt
	@touch $@

# What a user runs.

setup: $(VENV)/.base

DEMO_OPTIONS = $(if $(DATA),--data "$(DATA)") $(if $(FROM),--from "$(FROM)") $(if $(TO),--to "$(TO)") \
	$(if $(SEED),--seed "$(SEED)") $(if $(STRATEGY),--strategy "$(STRATEGY)") $(if $(ZONE),--zone "$(ZONE)")

demo: $(VENV)/.base
	@exec $(BIN)/btcbot demo $(DEMO_OPTIONS)

lab: $(VENV)/.base
	@exec $(BIN)/python -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/tutorials

# Every check, in the order of continuous integration. Slow: the notebooks with the JIT on (they compile the kernels), the same in plain Python
# under coverage (but for those that export nothing), and the wheel in an empty environment (it downloads the base set). Each step says when it
# began. The first two share WORKERS processes: `worksteal` keeps what a module's tests set up in one place until a process has nothing left to do.

WORKERS := 2
BEGAN := $(shell date +%s)
AFTER = after $$(($$(date +%s) - $(BEGAN))) s

test: $(VENV)/.external
	@echo "== 1/6 Notebooks are clean ($(AFTER))"
	@$(UNCHANGED) $(BIN)/nbdev-clean
	@$(UNCHANGED) $(BIN)/nbdev-clean --fname papermill_jobs
	@echo "== 2/6 The package is what the notebooks export ($(AFTER))"
	@$(UNCHANGED) $(BIN)/nbdev-export
	@echo "== 3/6 Lint, format, types, suppressed checks ($(AFTER))"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check mt5_server tests benchmarks
	@$(BIN)/mypy
	@$(BIN)/python tests/check_suppressions.py
	@$(BIN)/python tests/check_secrets.py
	@$(BIN)/python tests/check_readme.py
	@echo "== 4/6 Notebooks, and the tests that need compiled code, with the JIT on ($(AFTER))"
	@$(BIN)/nbdev-test --n-workers $(WORKERS) --timing
	@$(BIN)/python -m pytest -q -m jit -n $(WORKERS) --dist worksteal --durations=10 tests
	@echo "== 5/6 Notebooks, jobs and tests in plain Python, under coverage ($(AFTER))"
	@$(BIN)/coverage erase
	@NUMBA_DISABLE_JIT=1 $(BIN)/coverage run -m pytest -q -p btcbot.nbtest -n $(WORKERS) --dist worksteal -m "not jit" --durations=10 \
		--ignore=nbs/tutorials --ignore=nbs/index.ipynb nbs papermill_jobs tests
	@# Tests kill processes, also while they write what they measured: such a file lacks the part of its name that a whole one gets last.
	@rm -f .coverage.*.X??????x
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report
	@echo "== 6/6 The wheel in an empty environment ($(AFTER))"
	@$(BIN)/python -m pytest -q --durations=3 tests/check_wheel.py
	@echo "== All passed ($(AFTER))"

# Long runs, which are no part of `make test`.

bench: $(VENV)/.dev
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

parity: $(VENV)/.external
	@BTCBOT_ROUNDS="$(or $(ROUNDS),500)" $(BIN)/python -m pytest -q -rP -m parity -n $(WORKERS) --dist worksteal --durations=10 tests

honesty: $(VENV)/.dev
	@OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.honesty.campaign --seed "$(or $(SEED),1)"

faults: $(VENV)/.external
	@$(BIN)/python -m tests.faults.campaign --schedules "$(or $(SCHEDULES),2000)"
	@$(BIN)/python -m tests.faults.campaign --bugs

chaos: $(VENV)/.external
	@$(BIN)/python -m tests.chaos.campaign $(if $(SEED),--seed "$(SEED)",--schedules "$(or $(N),10000)" --jobs "$(WORKERS)")
	@$(if $(SEED),,$(BIN)/python -m tests.chaos.campaign --bugs --jobs "$(WORKERS)")
	@$(if $(SEED),,$(BIN)/python -m tests.chaos.campaign --live --schedules "$$(($(or $(N),10000) / 10))")

mutants: $(VENV)/.external
	@$(BIN)/python -m tests.mutants.campaign

# What a contributor runs.

docs: $(VENV)/.dev
	@command -v quarto >/dev/null || { echo "Quarto was not found; install it from https://quarto.org/docs/get-started/" >&2; exit 1; }
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev-docs

export: $(VENV)/.dev
	@$(BIN)/nbdev-export
	@$(BIN)/nbdev-clean
	@$(BIN)/nbdev-clean --fname papermill_jobs

notebooks: $(VENV)/.dev
	@$(BIN)/nbdev-export
	@$(BIN)/nbdev-test --save --n-workers 2
	@$(BIN)/nbdev-clean

format: $(VENV)/.dev
	@$(BIN)/ruff format mt5_server tests benchmarks
	@$(BIN)/ruff check --fix .

readme: $(VENV)/.dev
	@$(BIN)/python tests/check_readme.py --write

lock: $(VENV)/.dev
	@$(BIN)/python requirements/lock.py

pin: $(VENV)/.made
	@$(BIN)/python .github/pin_actions.py

hook: $(VENV)/.made
	@folder="$$(git rev-parse --git-path hooks)" && mkdir -p "$$folder" && test ! -e "$$folder/pre-commit" || \
		{ echo "There is a pre-commit hook already: add '$(BIN)/python tests/check_secrets.py --hook' to it." >&2; exit 1; }
	@folder="$$(git rev-parse --git-path hooks)" && printf '#!/bin/sh\nexec $(BIN)/python tests/check_secrets.py --hook\n' > "$$folder/pre-commit" && \
		chmod +x "$$folder/pre-commit" && echo "From now on secrets are refused before each commit: $$folder/pre-commit"

# Each tool in an environment of its own, at a version of ours. They ask the internet, so none is a part of `make test`.

TOOL := $(BIN)/uv tool run --from

audit: $(VENV)/.dev
	@$(TOOL) pip-audit==2.10.1 pip-audit --disable-pip --require-hashes -r requirements/all.txt

sbom: $(VENV)/.dev
	@$(TOOL) cyclonedx-bom==7.5.0 cyclonedx-py requirements requirements/all.txt --pyproject pyproject.toml --output-reproducible -o sbom.json

zizmor: $(VENV)/.dev
	@$(TOOL) zizmor==1.32.0 zizmor --offline --no-progress .github

clean:
	rm -rf build dist _proc _docs htmlcov *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
	find btcbot mt5_server nbs papermill_jobs tests benchmarks requirements -name __pycache__ -prune -exec rm -rf {} +
	find nbs papermill_jobs -name .ipynb_checkpoints -prune -exec rm -rf {} +
