# `make demo` and `make test` do everything a fresh machine needs; both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: env demo test lint bench clean

env: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	-$(BIN)/python -m triforces_deploy.lammps_plugin build # without a compiler it says so, and all but LAMMPS works
	touch .venv/ready

demo: env
	rm -rf demo
	bash examples/01_demo.sh demo

test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile # a file's fixtures are made once

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: env
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf .venv demo build dist *.egg-info
