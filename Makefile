# Every chore of the project; .ci/run calls the same verbs.
PYTHON ?= python3
BIN := .venv/bin
export POISONTRACE_DATA ?= $(if $(wildcard ../shared/data),../shared/data,data)

.PHONY: setup demo test test-slow check fmt bench bench-peers docs

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps kronfluence
	touch $@

setup: .venv/.installed  ## create .venv and install the pinned package with its dev extras

demo: setup  ## poison a small model, trace the attack, write the report
	rm -rf demo
	$(BIN)/poisontrace attack --attack badnets --dataset digits --rate 0.05 --seed 0 --out demo/incident
	$(BIN)/poisontrace trace --model demo/incident/arch.py:build --weights demo/incident/weights.safetensors \
	    --data demo/incident/train.npz --events demo/incident/events.npz --truth demo/incident/truth.json --out demo/case

# Tiny tensors: more threads would only wait for each other.
test: setup  ## the fast, offline tests, a file at a time on each of two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-slow: setup  ## minutes of work on real data
	$(BIN)/python -m pytest -m slow $(ARGS)

check: setup  ## style, types, layers, spelling; writes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config pyproject.toml
	$(BIN)/codespell src tests docs examples benchmarks README.md CONTRIBUTING.md CHANGELOG.md

fmt: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

GRID ?= benchmarks/grids/badnets-cifar10.toml
bench: setup  ## trace every incident of a grid and renew the tables
	$(BIN)/poisontrace bench $(GRID)

bench-peers: setup  ## give the same events to other methods and renew the tables; resumes where it stopped
	$(BIN)/python benchmarks/bench_peers.py $(ARGS)
	$(BIN)/poisontrace bench --tables-only

docs: setup  ## renew generated tables and build the site in build/site; a dead link is an error
	$(BIN)/poisontrace bench --tables-only
	$(BIN)/mkdocs build --strict
