# make train: from a clone to a trained model with a report.
# make test: the tests but for the slow ones.   make test-all: all of them.
# make demo: the model of models/ on photographs.
# make lint: ruff.   make types: mypy.
# make parity: the loss against pytorch-metric-learning, backbones with weights of PyTorch files against
# PyTorch, and exported models in ONNX Runtime, in environments of their own.
# make hosts: one run on 1 device, on 8, on 2 processes of 4.
# make gpu-parts: every part of experiments/benchmarks/on_gpu.py, small, on a CPU.
# make accelerators: what XLA makes of loss and step for a GPU and a TPU, in an environment of its own.
# make docs: the documentation as a site, in site/.
# make notebooks: those of docs/, from the first cell to the last.
# make page: the demo page in a browser (Chromium's), in an environment of its own.
# make results: the tables of docs/results/ from the csv files of experiments/results/.
# make package: sdist and wheel, in dist/.
# make installed: both without a clone, with the extra [predict], each in an environment of its own.
# PYTHON= chooses the interpreter (3.11 or newer), VENV= the folder of the environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: train test test-slow test-all lint types parity hosts gpu-parts accelerators page package installed demo docs results

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

# The second time as on Windows: no module but system.py may use what it does not have.
types: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet mypy
	$(BIN)/mypy
	$(BIN)/mypy --platform=win32 --cache-dir=.mypy_cache/win32

# Without pytest-xdist, which setup.cfg's options ask for.
parity: .venv-parity/.installed .venv-onnx/.installed
	.venv-parity/bin/python -m pytest -o addopts=--strict-markers -rP \
		tests/environments/parity_pml.py tests/environments/parity_backbones.py
	.venv-onnx/bin/python -m pytest -o addopts=--strict-markers tests/environments/parity_onnx.py

installed: .venv-wheel/.installed .venv-sdist/.installed
	.venv-wheel/bin/python tests/environments/installed.py
	.venv-sdist/bin/python tests/environments/installed.py

hosts: $(VENV)/.installed
	$(BIN)/python -m pytest -o addopts=--strict-markers -m 'not slow' tests/environments/several_hosts.py

gpu-parts: $(VENV)/.installed
	$(BIN)/python -m pytest -o addopts=--strict-markers tests/environments/gpu_parts_on_a_cpu.py

accelerators: .venv-accelerators/.installed
	.venv-accelerators/bin/python -m pytest -o addopts=--strict-markers -rP \
		tests/environments/compiled_for_accelerators.py

# What is built needs no network, and every link and docstring has to hold.
docs: .venv-docs/.installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

results: $(VENV)/.installed
	$(BIN)/python experiments/results.py

notebooks: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet ipykernel nbmake
	$(BIN)/python -m pytest -o addopts=--nbmake docs/notebooks

# Gradio's threads meet warnings of pandas, which setup.cfg would make errors.
page: .venv-page/.installed
	.venv-page/bin/python -m pytest -o addopts=--strict-markers -o filterwarnings=default -rP \
		tests/environments/page_in_browser.py

$(VENV)/.installed: setup.cfg
	@echo 'Installing into $(VENV), which takes some minutes.'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

package: dist/.built

# The wheel is made from the sdist, which therefore has all that it takes.
dist/.built: setup.cfg pyproject.toml MANIFEST.in README.md $(shell find -L mtdml_jax -type f ! -name '*.pyc')
	$(MAKE) $(VENV)/.installed
	rm -rf dist
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build > /dev/null
	touch $@

# Anew: what is tested is the package.
.venv-wheel/.installed: dist/.built
	$(PYTHON) -m venv --clear .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet "$$(echo dist/*.whl)[predict]"
	touch $@

.venv-sdist/.installed: dist/.built
	$(PYTHON) -m venv --clear .venv-sdist
	.venv-sdist/bin/python -m pip install --quiet "$$(echo dist/*.tar.gz)[predict]"
	touch $@

# torch by itself first, so that its version is settled when pytorch-metric-learning asks for any.
.venv-parity/.installed: setup.cfg Makefile
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet torch==2.13.0
	.venv-parity/bin/python -m pip install --quiet pytorch-metric-learning==2.9.0
	.venv-parity/bin/python -m pip install --quiet --editable . 'flax>=0.11' pytest
	touch $@

.venv-onnx/.installed: setup.cfg Makefile
	$(PYTHON) -m venv .venv-onnx
	.venv-onnx/bin/python -m pip install --quiet --editable '.[onnx]' pytest
	touch $@

.venv-page/.installed: setup.cfg Makefile
	$(PYTHON) -m venv .venv-page
	.venv-page/bin/python -m pip install --quiet --editable '.[demo]' matplotlib playwright pytest scipy
	touch $@

# Of JAX for CUDA the compiler alone: CUDA itself is gigabytes.
.venv-accelerators/.installed: setup.cfg Makefile
	$(PYTHON) -m venv .venv-accelerators
	.venv-accelerators/bin/python -m pip install --quiet --editable '.[predict]' 'jax[tpu]' ml_collections optax pytest
	version=$$(.venv-accelerators/bin/python -c 'import jax; print(jax.__version__)') && \
		.venv-accelerators/bin/python -m pip install --quiet --no-deps \
		jax-cuda13-plugin==$$version jax-cuda13-pjrt==$$version
	touch $@

.venv-docs/.installed: setup.cfg Makefile
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet '.[docs]'
	touch $@
