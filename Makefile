# Every target sets up what it needs: on a fresh clone the first one makes .venv and installs the pinned requirements.
PROFILE ?= mini
PYTHON ?= python3
ARGS ?=

PY := .venv/bin/python
# Tests never reach the network. Whole files run side by side, JOBS at a time and one thread each: two processes with a thread
# get more out of two cores than one process with two threads.
JOBS ?= 2
ALONE := HF_HUB_OFFLINE="$${HF_HUB_OFFLINE:-1}" OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}"
SPREAD := -n $(JOBS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help plan reproduce train test bench clean

help: ## show this list
	@echo "make plan [PROFILE=mini] [ARGS=...]        what a run needs: downloads, disk, GPU, hours; says what is missing"
	@echo "make reproduce [PROFILE=mini] [ARGS=...]   run all notebooks headless and make every figure again"
	@echo "make test [JOBS=2]                         run the tests, then check the notebooks' outputs (nbval), JOBS files at a time"
	@echo "make train [PROFILE=mini]                  train the profile's models that have no weights yet"
	@echo "make bench                                 run the scripts in benchmarks/, one after the other"
	@echo "make clean                                 delete what git ignores and make can make again: .venv, data/cache"
	@echo
	@echo "Profiles: $(patsubst profiles/%.yaml,%,$(wildcard profiles/*.yaml)). PYTHON=... picks the interpreter (3.11 or newer)."

plan: .venv/.installed
	@$(PY) -m une_utils.report.plan --profile "$(PROFILE)" $(ARGS)

reproduce: .venv/.installed
	@$(PY) -m une_utils.report.runner --profile "$(PROFILE)" $(ARGS)

train: .venv/.installed
	@$(PY) -m une_utils.models.train --profile "$(PROFILE)" $(ARGS)

test: .venv/.installed
	@echo "tests of the package"
	@$(ALONE) $(PY) -m pytest $(SPREAD)
	@echo "latents of the pictures (NoiseZoo), which all notebooks share"
	@$(ALONE) $(PY) -m une_utils.zoo.build --profile mini
	@echo "notebooks against their committed outputs"
	@$(ALONE) UNE_FIGURES="$(CURDIR)/data/cache/nbval-figures" $(PY) -m pytest $(SPREAD) --nbval-lax --nbval-current-env --nbval-cell-timeout 3600 notebooks

bench: .venv/.installed
	@for script in benchmarks/*.py; do echo "$$script"; $(PY) "$$script" || exit 1; done

clean:
	rm -rf .venv data/cache *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --no-build-isolation builds with the pinned setuptools; isolation would fetch whatever is newest.
.venv/.installed: requirements.txt pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { echo "'$(PYTHON)' was not found; name a Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1); name another one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "set-up: installing the pinned requirements into .venv, about 2.1 GB (several GB more where PyTorch brings CUDA); takes minutes, once"
	@"$(PYTHON)" -m venv .venv
	@$(PY) -m pip install -qq --disable-pip-version-check -r requirements.txt
	@$(PY) -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
	@echo "set-up: done"
