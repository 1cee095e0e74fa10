# STACK=openmmlab (default) or onedl; OPS=torch (default) or compiled; PYTHON selects the
# interpreter; JOBS, the processes of the tests; ARGS go to what is run.
STACK ?= openmmlab
OPS ?= torch
PYTHON ?= python3
JOBS ?= 2
VENV := .venv$(if $(filter onedl,$(STACK)),-onedl)$(if $(filter compiled,$(OPS)),-compiled)
PY := $(VENV)/bin/python

.PHONY: help setup demo results test smoke lint format
help:
	@echo 'make demo    train teacher, plain and RdimKD student on digits; table and report'
	@echo 'make results run the experiments on digits that have no result yet; tables in docs/results.md'
	@echo 'make test    all tests, in JOBS=2 processes; ARGS="-k losses" for some'
	@echo 'make smoke   a quick representative set of the tests'
	@echo 'make lint    ruff; make format fixes what it can'
	@echo 'make setup   only make the environment, $(VENV)'
	@echo 'STACK=onedl  with each: the OneDL distribution, in .venv-onedl'
	@echo 'OPS=compiled with each: mmcv with its operators compiled, in .venv-compiled or'
	@echo '             .venv-onedl-compiled; needs a C++ compiler and about 6 minutes'
	@echo 'PYTHON=python3.x  the Python to make the environment with'

setup:
	@$(PYTHON) tools/bootstrap.py $(VENV) $(STACK) $(OPS)

demo: setup
	@$(PY) tools/demo.py $(ARGS)

results: setup
	@$(PY) tools/run_experiments.py $(ARGS)
	@$(PY) tools/run_experiments.py --report

# One thread a process: the tests start processes of their own.
test smoke: export OMP_NUM_THREADS ?= 1

# A process per core, each with whole files, whose tests share data sets and teachers.
test: setup
	@$(PY) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

smoke: setup
	@$(PY) -m pytest -m smoke $(ARGS)

lint: setup
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

format: setup
	@$(PY) -m ruff check --fix . && $(PY) -m ruff format .
