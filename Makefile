# make train: trains from a clone to a model with a report.
# make test: runs the tests except the slow ones.   make test-all: runs all of them.
# make demo: runs the model of models/ on photographs.
# make lint: runs ruff.
# make types: runs mypy, and then mypy and pyright on what users write (tests/environments/types_*.py).
# make docs: builds the documentation as a site in site/.
# make notebooks: runs the notebooks of docs/ from the first cell to the last.
# make results: writes the tables of docs/results/ from the csv files of experiments/results/.
# make package: builds sdist and wheel in dist/.
# The next ones run tests/environments/run.py, which lists the packages and options of each environment.
# make parity: compares the loss with pytorch-metric-learning, backbones with PyTorch, and exported models
#   in ONNX Runtime with our own predictions.
# make installed: tests wheel and sdist without a clone.
# make page: tests the demo page in Chromium.
# make accelerators: compiles loss and training step for a GPU and a TPU.
# make hosts: compares one run on 1 device, on 8 devices and on 2 processes of 4 devices.
# make gpu-parts: runs every part of experiments/benchmarks/on_gpu.py on a CPU with small sizes.
# PYTHON= chooses the interpreter (3.11 or newer), VENV= the folder of the environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: train test test-slow test-all lint types package demo docs notebooks results \
	parity installed page accelerators hosts gpu-parts

train: $(VENV)/.installed
	$(BIN)/python -m mtdml_jax train --config=configs/quickstart.py --workdir=runs/quickstart

demo: $(VENV)/.installed
	$(BIN)/python -m mtdml_jax predict --model=models/fer2013.safetensors --faces=detect --format=table \
		models/pictures

test: $(VENV)/.installed
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

test-all: test test-slow

lint: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The second call checks as on Windows: only system.py may use what Windows lacks.
types: $(VENV)/.installed .venv-types/.installed
	$(BIN)/python -m pip install --quiet mypy
	$(BIN)/mypy
	$(BIN)/mypy --platform=win32 --cache-dir=.mypy_cache/win32
	$(PYTHON) tests/environments/run.py types

parity: tests-of-parity tests-of-onnx
installed: tests-of-wheel tests-of-sdist
page accelerators: %: tests-of-%

tests-of-%: .venv-%/.installed
	$(PYTHON) tests/environments/run.py $*

hosts gpu-parts: $(VENV)/.installed
	$(BIN)/python tests/environments/run.py $@

# The build needs no network. It fails for a broken link or docstring.
docs: .venv-docs/.installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

results: $(VENV)/.installed
	$(BIN)/python experiments/results.py

notebooks: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet ipykernel nbmake
	$(BIN)/python -m pytest -o addopts=--nbmake docs/notebooks

# Python compiles what is imported; pip would compile everything: 93 s instead of 58.
$(VENV)/.installed: setup.cfg
	@echo 'Installing into $(VENV), which takes some minutes.'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[test]'
	touch $@

package: dist/.built

# The wheel is built from the sdist, so the sdist has every file that the build needs.
dist/.built: setup.cfg pyproject.toml MANIFEST.in README.md $(shell find -L mtdml_jax -type f ! -name '*.pyc')
	$(MAKE) $(VENV)/.installed
	rm -rf dist
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build > /dev/null
	touch $@

# Without this, make would delete the file as an intermediate one.
.PRECIOUS: .venv-%/.installed
.venv-%/.installed: setup.cfg tests/environments/run.py
	$(PYTHON) tests/environments/run.py --install $*
	touch $@

.venv-wheel/.installed .venv-sdist/.installed: dist/.built
