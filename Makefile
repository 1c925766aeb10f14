# make demo: build and check a small model.   make test: run the tests.   make help: list all targets.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
.DELETE_ON_ERROR:
.PHONY: help demo install test soak lint format lock bench bench-builders bench-speed bench-zoo bench-large bench-sound bench-vision clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 21

demo: $(VENV)/installed ## build and check config/demo.yaml, and print the bundle's folder and the model's answer
	snakemake --cores all demo
	@axzoo report config/demo.yaml

install: $(VENV)/installed ## create .venv and install axzoo in it

test: $(VENV)/installed-test ## run the tests, with coverage
	pytest -m "not soak" --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --cov --cov-report=term $(TESTS)

soak: $(VENV)/installed-test ## run the slow tests
	pytest -m soak

lint: $(VENV)/installed-test ## run ruff, mypy, import-linter and snakefmt; findings of snakemake --lint do not fail
	ruff check .
	ruff format --check .
	mypy
	lint-imports --no-logo --no-cache
	snakefmt --check Snakefile workflow
	-snakemake --lint

format: $(VENV)/installed-test ## format the sources
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

lock: $(VENV)/bin/python ## pin the requirements of pyproject.toml in envs/constraints.txt (UPGRADE=1: the newest releases)
	python scripts/lock.py $(if $(UPGRADE),--upgrade)

bench: $(VENV)/installed-test ## measure the figures of docs/performance.md (TEXT=FILE: the text of the fidelity table)
	python scripts/bench.py $(if $(TEXT),--text $(TEXT))

# Uses a separate environment without the test requirements, because Snakemake imports the Kubernetes client and pandas
# whenever they are installed.
bench-builders: $(VENV)-bench/installed ## compare build times with other builders (after make demo)
	$(MAKE) VENV=$(VENV)-user install
	PATH="$(CURDIR)/$(VENV)-user/bin:$$PATH" python scripts/bench_builders.py $(VENV)-bench/bin/python

bench-speed: $(VENV)/installed-test $(VENV)-bench/installed ## compare generation speed with llama.cpp and onnxruntime-genai (after make demo)
	python scripts/bench_speed.py $(VENV)-bench/bin/python

bench-zoo: $(VENV)/installed-test ## measure Snakemake with 40 models on both chips (after make demo)
	python scripts/bench_zoo.py

bench-large: $(VENV)/installed-test ## measure time and memory of all jobs for the dimensions of a 7B model (needs 15 GB of disk)
	python scripts/bench_large.py results/large

bench-sound: $(VENV)/installed-test ## check that level 1 refuses no sound build of a random model with Qwen2.5-0.5B's dimensions (needs 8 GB of disk)
	python scripts/sound_stand_in.py results/sound

bench-vision: $(VENV)/installed-test ## build, check and run a model with MiniCPM-V 2.0's dimensions (CONFIG: its config.json; needs 15 GB of disk)
	python scripts/bench_vision.py results/vision $(CONFIG)

clean: ## remove all results and downloads, but not .venv
	rm -rf results .snakemake

$(VENV)/bin/python:
	@echo "creating $(VENV) with $$($(PYTHON) --version)"
	$(PYTHON) -m venv $(VENV)

LOCK := envs/constraints.txt
INSTALL := -m pip install --quiet --disable-pip-version-check --constraint $(LOCK)
# The environment in which pip builds axzoo takes constraints only from these variables, depending on pip's version.
$(VENV)/installed $(VENV)/installed-test $(VENV)-bench/installed: export PIP_CONSTRAINT := $(LOCK)
$(VENV)/installed $(VENV)/installed-test $(VENV)-bench/installed: export PIP_BUILD_CONSTRAINT := $(LOCK)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml $(LOCK)
	@echo "installing axzoo and its requirements in $(VENV) (a minute or two)"
	$(VENV)/bin/python $(INSTALL) --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed pyproject.toml $(LOCK)
	@echo "installing the test requirements in $(VENV)"
	$(VENV)/bin/python $(INSTALL) --editable '.[test]'
	@touch $@

$(VENV)-bench/installed: pyproject.toml $(LOCK)
	@echo "installing the builders for comparison in $(VENV)-bench"
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python $(INSTALL) --editable '.[bench]'
	@touch $@
