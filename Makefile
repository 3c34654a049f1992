# `make demo` and `make test` do all of their own set-up in .venv.
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 0
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --no-compile

.PHONY: demo test lint bench bench-gpu install clean

demo: .venv/installed
	$(BIN)/vlm-align run demo seed=$(SEED)
	$(BIN)/vlm-align report demo

# One thread a process: two torch processes of two threads each slow each other down tenfold on two cores.
test: .venv/dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

bench: .venv/installed
	$(BIN)/python -m benchmarks $(WORKLOADS)

bench-gpu: .venv/installed
	$(BIN)/python -m benchmarks --gpu $(WORKLOADS)

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: .venv/installed

.venv/installed: requirements/cpu.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { echo \
	  "error: Python 3.11, 3.12 or 3.13 is needed, and $(PYTHON) is: `$(PYTHON) --version 2>&1 | tail -n 1`;" \
	  "name another: make PYTHON=python3.11 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) has no venv module:" \
	  "install it (Debian, Ubuntu: apt install python3-venv), or name another: make PYTHON=python3.12 ..." >&2; exit 2; }
	@echo "installing into .venv (about two minutes) ..."
	@$(PYTHON) -m venv .venv
	@$(PIP) torch==2.13.0
	@$(PIP) --no-deps -r requirements/cpu.txt
	@$(PIP) --no-deps --editable .
	@touch $@

.venv/dev: .venv/installed requirements/dev.txt
	@$(PIP) --no-deps -r requirements/dev.txt
	@touch $@

clean:
	rm -rf .venv runs
