# Everything a fresh machine needs: Python 3.11 or 3.12, gcc, git, make. `make help` lists the targets.
.PHONY: help env links demo demo-full clean-demo test test-all trial lint readme seal
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do command -v $$p && break; done)
VENV := .venv
STAMP := $(VENV)/.made
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

env: $(STAMP)  ## the environment, in .venv

$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
	  || { echo "Python 3.11 or 3.12 is needed; name it: make env PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "installing into $(VENV) (about two minutes)"
	@test -x $(VENV)/bin/python || "$(PYTHON)" -m venv $(VENV)
	@$(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

links:  ## the links slurm and local, which some programs that unpack archives write as text files
	@for name in slurm local; do test -d $$name || { ln -sfn workflow/profiles/$$name $$name \
	  && echo "$$name was no folder: it is a link to workflow/profiles/$$name again"; }; done

demo: env links  ## data set, trainings, tables and figures at laptop scale, in demo/
	@snakemake --profile local --directory demo
	@echo
	@echo "Made in demo/: results/tables/main.md (the table), results/figures/ (curves, birdseye views),"
	@echo "results/runs/<run>/metrics.json, models/<run>/seed<n>/weights.safetensors, logs/"

demo-full: env links  ## every row of every table and figure at laptop scale, in demo/full/
	@snakemake --profile local --directory demo/full

clean-demo:  ## remove what the demo made
	@rm -rf demo/.snakemake demo/artifacts demo/data demo/logs demo/models demo/results demo/scratch

test: env links  ## the tests, without the slowest
	@python -m pytest -q -n 2 --dist loadfile -m "not slow or sample"

test-all: env links  ## all tests
	@python -m pytest -q -n 2 --dist loadfile

MINUTES ?= 15
trial: env  ## the workflow on a Slurm cluster of its own (root), disturbed at random for MINUTES=15
	@python tests/slurm/trial.py --install --minutes $(MINUTES)

lint: env  ## style of Python and Snakemake files
	@ruff check .
	@ruff format --check .
	@snakefmt --check workflow
	@snakemake --lint

readme: env  ## write the numbers of the README from the results
	@vexkd readme

seal: env  ## record what a plain Snakemake run made, if it is what params.yaml asks for
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "this folder is no git checkout, in which DVC records; clone the repository, or run 'git init' here." >&2; exit 1; }
	@vexkd check --all && python workflow/scripts/dvc_stage.py seal && python workflow/scripts/dvc_stage.py record
