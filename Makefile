# make train: from a clone to a trained model with a report.   make test: the tests.
# PYTHON= chooses the interpreter (3.11 or newer), VENV= the folder of the environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: train test lint

train: $(VENV)/.installed
	$(BIN)/python -m mtdml_jax train --config=configs/quickstart.py --workdir=runs/quickstart

test: $(VENV)/.installed
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/.installed: setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@
