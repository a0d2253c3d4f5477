# make demo   from a fresh clone to a depth curve      make test   the test suite
# make check  lint, format, types                      make docs   the documentation, strictly
# make package  wheel and sdist, installed in an empty environment and run
# make bench  the CPU benchmarks (minutes)             make setup  only the environment
# make properties  every property test with thirty seeds      (SEEDS="31 34" TIMES=10: four others, ten times the examples)
# make faults damaged files, kills, two processes on one folder, full disks (hours; stopped and started again it goes on)
# make coverage  lines and branches that the default suite runs
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
DEMO   ?= demo

.PHONY: setup demo demo-pretrained test test-slow properties coverage check docs bench faults package clean

setup: $(VENV)/.dev-installed

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else "probekit needs Python 3.11 to 3.14; this is " + sys.version.split()[0] + ": run make with PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# timm for the tests, in a folder of its own and without what it asks for: torchvision's published builds name a CUDA build
# of torch, and where they cannot load their operators they break the import of transformers (tests/probekit/encoders)
# torch first and alone: its pin then decides the build, whatever another package would ask for
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt -e .
	touch $@

$(VENV)/.dev-installed: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	$(PIP) install -q -c constraints.txt --no-deps --upgrade --target $(VENV)/timm-site timm torchvision
	touch $@

demo: $(VENV)/.installed
	$(BIN)/probekit demo --out $(DEMO)

demo-pretrained: $(VENV)/.installed
	$(BIN)/probekit demo --pretrained --out $(DEMO)-pretrained

# one thread a worker: two workers with two threads each would fight over two cores; the order and the examples of the
# property tests are fixed (tests/conftest.py), so that a failure repeats: make test SEED=1 tries others
test: $(VENV)/.dev-installed
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal \
	$(if $(SEED),--randomly-seed=$(SEED) --hypothesis-seed=$(SEED))

test-slow: $(VENV)/.dev-installed
	$(BIN)/python -m pytest -m slow

SEEDS ?= 1 30
TIMES ?= 1
properties: $(VENV)/.dev-installed
	PROPERTIES="$(SEEDS) $(TIMES)" PYTHONPATH=.ci OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -p seeds -m 'hypothesis and not gpu'

check: $(VENV)/.dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev-installed
	$(BIN)/mkdocs build --strict -q

bench: $(VENV)/.dev-installed
	for script in benchmarks/*_speed.py; do $(BIN)/python $$script || exit 1; done

package: $(VENV)/.dev-installed
	$(BIN)/python .ci/package.py

# both keep what is done in build/, so that the same command goes on; remove build/faults-* to begin anew
INPUTS ?= 5000
KILLS ?= 300
faults: $(VENV)/.dev-installed
	mkdir -p build
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/fuzz.py --inputs $(INPUTS) --state build/faults-fuzz.json
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/kills.py --kills $(KILLS) --state build/faults-kills.jsonl
	$(BIN)/python tests/faults/tables.py

# in pieces, so that one that is stopped need not be run again: .coverage.PIECE files are combined at the end
PIECES = igpt_model analyses faults probekit/cli probekit/datasets probekit/encoders probekit/evaluate probekit/features \
	probekit/probes probekit/reports probekit/results probekit/runtime probekit/selection probekit/solver
coverage: $(VENV)/.dev-installed
	for piece in $(PIECES); do test -f .coverage.$$(basename $$piece) || \
	COVERAGE_FILE=.coverage.$$(basename $$piece) OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -q tests/$$piece || exit 1; done
	$(BIN)/python -m coverage combine --keep
	$(BIN)/python -m coverage report

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
