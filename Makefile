# Every target sets up what it needs: on a fresh clone the first one makes .venv and installs the pinned requirements.
PROFILE ?= mini
PYTHON ?= python3
ARGS ?=
# Numbers of the notebooks that `make test` compares with their committed outputs; all: every one, as `make regression` does.
NOTEBOOKS ?= 00 01 02 03

PY := .venv/bin/python
# Tests never reach the network. Whole files run side by side, JOBS at a time and one thread each: two processes with a thread
# get more out of two cores than one process with two threads.
JOBS ?= 2
ALONE := HF_HUB_OFFLINE="$${HF_HUB_OFFLINE:-1}" OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}"
SPREAD := -n $(JOBS) --dist loadfile

# Files of the notebooks with the given numbers. An unknown number is an error, or pytest would run something else.
notebook_files = $(if $(filter all,$(1)),notebooks,$(foreach n,$(1),$(or $(wildcard notebooks/$(n)_*.ipynb),$(error no notebook has the number $(n)))))

# The latents are built up front, by both cores: two notebooks at a time would build them twice. Notebook 01 shows every view of the
# zoo and 02 and 03 read them all, so there is none to leave out.
define check_notebooks
	@echo "latents of the pictures (NoiseZoo), which all notebooks share"
	@$(ALONE) $(PY) -m une_utils.zoo.build --profile mini
	@echo "notebooks against their committed outputs: $(1)"
	@$(ALONE) UNE_FIGURES="$(CURDIR)/data/cache/nbval-figures" $(PY) -m pytest $(SPREAD) --nbval-lax --nbval-current-env --nbval-cell-timeout 3600 \
	  $(call notebook_files,$(1))
endef

.DEFAULT_GOAL := help
.PHONY: help plan reproduce train test regression bench clean

help: ## show this list
	@echo "make plan [PROFILE=mini] [ARGS=...]        what a run needs: downloads, disk, GPU, hours; says what is missing"
	@echo "make reproduce [PROFILE=mini] [ARGS=...]   run all notebooks headless and make every figure again"
	@echo "make test [JOBS=2] [NOTEBOOKS='00 01']     tests, then nbval of notebooks $(NOTEBOOKS), JOBS files at a time: 17 minutes"
	@echo "make regression [JOBS=2]                   nbval of every notebook against its committed outputs: about 45 minutes"
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

# The first file takes minutes in one process (tests/conftest.py puts it there), so files keep their order: sorted by their number of
# tests, as they are otherwise, it would come last and leave a core idle.
test: .venv/.installed
	@echo "tests of the package"
	@$(ALONE) $(PY) -m pytest $(SPREAD) --no-loadscope-reorder
	$(call check_notebooks,$(NOTEBOOKS))

regression: .venv/.installed
	$(call check_notebooks,all)

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
