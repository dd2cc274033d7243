# Everything is set up in .venv by the first target that needs it; `make reproduce` and `make test` are all a newcomer needs.
VENV ?= .venv
PYTHON ?= python3
PROFILE ?= cpu
WORKERS ?= 2
# Two processes of one thread are faster than one of two; a GPU is best left to one.
PROCESSES ?= $(if $(filter gpu%,$(PROFILE)),1,$(WORKERS))
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export TOKENIZERS_PARALLELISM ?= false

# One thread to a worker: two processes with two threads each get in each other's way on two cores.
NBVAL := -p no:cacheprovider --nbval --nbval-current-env --nbval-cell-timeout 600
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile

.PHONY: reproduce test lint unit notebooks render lab gpu-check rehearse lock clean

reproduce: $(READY)
	$(BIN)/symprune reproduce --profile $(PROFILE) --processes $(PROCESSES)

test: lint unit notebooks

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(READY)
	$(PARALLEL)

# Every committed notebook is executed again, in a folder of its own, and must print what it printed.
notebooks: $(READY)
	rm -rf build/nbval
	SYMPRUNE_OUTPUT=build/nbval $(PARALLEL) $(NBVAL) notebooks/*.ipynb

render: $(READY)
	$(BIN)/symprune render

# A copy to play with, in lab/, which git ignores: Lab rewrites what it saves. What it draws stays there too.
lab: $(READY)
	$(BIN)/python -m symprune.paper.lab
	SYMPRUNE_OUTPUT=lab $(BIN)/jupyter lab --notebook-dir=lab

# The profiles that need a GPU and the hub, from end to end on tiny models with the published names.
rehearse: $(READY)
	$(PARALLEL) -m slow tests/test_rehearsal.py

# On a machine with a GPU: what must hold there, then a 7B-shaped model pruned by each recipe, into results/gpu_check/.
gpu-check: $(READY)
	$(BIN)/pytest -m gpu
	$(BIN)/python benchmarks/gpu_check.py

$(READY): requirements-lock.txt requirements-embedded.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python -r requirements-lock.txt
	$(BIN)/uv pip install --python $(BIN)/python --no-deps -r requirements-embedded.txt -e .
	touch $(READY)

# Without addresses, so that it installs from any index.
lock: $(READY)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-header --no-annotate --no-emit-index-url \
		pyproject.toml --output-file requirements-lock.txt

clean:
	rm -rf build .pytest_cache .ruff_cache .mypy_cache .hypothesis
