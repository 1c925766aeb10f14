# make demo: build, check and question the embedded model.   make test: the tests.   make help: the rest.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
.DELETE_ON_ERROR:
.PHONY: help demo install test soak lint format lock bench bench-builders bench-speed bench-zoo clean

help: ## say what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 21

demo: $(VENV)/installed ## build config/demo.yaml, check it, print where it lies and what it answers
	snakemake --cores all demo
	@axzoo report config/demo.yaml

install: $(VENV)/installed ## make .venv and install axzoo into it

test: $(VENV)/installed-test ## run the tests, with coverage
	pytest -m "not soak" --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --cov --cov-report=term $(TESTS)

soak: $(VENV)/installed-test ## run the tests that take long
	pytest -m soak

lint: $(VENV)/installed-test ## ruff, mypy, import-linter, snakefmt; snakemake --lint is shown, not obeyed
	ruff check .
	ruff format --check .
	mypy
	lint-imports --no-logo --no-cache
	snakefmt --check Snakefile workflow
	-snakemake --lint

format: $(VENV)/installed-test ## bring the sources into shape
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

lock: $(VENV)/bin/python ## pin what pyproject.toml asks for in envs/constraints.txt (UPGRADE=1: the newest releases)
	python scripts/lock.py $(if $(UPGRADE),--upgrade)

bench: $(VENV)/installed-test ## measure what docs/performance.md states (TEXT=FILE: the text of the fidelity table)
	python scripts/bench.py $(if $(TEXT),--text $(TEXT))

# With what a user has: of what the tests install, Snakemake imports Kubernetes' client and pandas at every start.
bench-builders: $(VENV)-bench/installed ## measure a build beside other builders' (after make demo)
	$(MAKE) VENV=$(VENV)-user install
	PATH="$(CURDIR)/$(VENV)-user/bin:$$PATH" python scripts/bench_builders.py $(VENV)-bench/bin/python

bench-speed: $(VENV)/installed-test $(VENV)-bench/installed ## measure answers beside llama.cpp's and onnxruntime-genai's (after make demo)
	python scripts/bench_speed.py $(VENV)-bench/bin/python

bench-zoo: $(VENV)/installed-test ## measure Snakemake over 40 models on both chips (after make demo)
	python scripts/bench_zoo.py

clean: ## remove what was built and fetched; .venv stays
	rm -rf results .snakemake

$(VENV)/bin/python:
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	$(PYTHON) -m venv $(VENV)

LOCK := envs/constraints.txt
INSTALL := -m pip install --quiet --disable-pip-version-check --constraint $(LOCK)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml $(LOCK)
	@echo "installing axzoo and what it needs into $(VENV) (a minute or two)"
	$(VENV)/bin/python $(INSTALL) --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed pyproject.toml $(LOCK)
	@echo "installing what the tests need into $(VENV)"
	$(VENV)/bin/python $(INSTALL) --editable '.[test]'
	@touch $@

$(VENV)-bench/installed: pyproject.toml $(LOCK)
	@echo "installing the builders to compare with into $(VENV)-bench"
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python $(INSTALL) --editable '.[bench]'
	@touch $@
