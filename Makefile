# Everything a contributor does. `make up` and `make test` need Python 3.11 to 3.14 and make.
#
#   make up                start three nodes here (http://127.0.0.1:8081 to 8083); Ctrl-C ends them
#   make test              unit, property, simulator (a short set) and real-process tests
#   make lint              ruff, mypy --strict, import-linter
#   make sim SEEDS=200     the simulator over that many seeds
#   make mutants           planted bugs, each of which the simulator or a model must catch
#   make chaos             the long real-process runs: kill -9, SIGSTOP, cut links
#   make bench             all benchmarks; make bench-locks: locks beside etcd and PySyncObj
#   make bench-queues      queues beside BullMQ (needs npm), dramatiq, taskiq, arq, saq
#   make bench-cache       the cache beside FastAPI + Redis, etcd and Redis itself
#   make bench-operator    memory and CPU of the operator of 50 resources while nothing changes
#   make images            the images of node and operator, with Docker (buildx) or Podman
#   make e2e               journeys on a Kubernetes cluster: KUBECONFIG's, or one of kind
#   make generate          write again what follows from the CRD and the values of the charts
#   make lock              compile requirements/ again after a change of pyproject.toml (needs uv)

VENV ?= .venv
SEEDS ?= 200
ARGS ?=

# The first interpreter that is new enough; `make PYTHON=/path/to/python3.12 install` decides it.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null \
	&& { echo "$$python"; break; }; done)

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --no-input
REQUIREMENTS = base node operator build local dramatiq dev bench bench-redis5

# Tests start hundreds of nodes, each of which would compile every module if none could be kept.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-bench up test lint format sim mutants chaos bench bench-locks bench-queues \
	bench-cache bench-operator images e2e generate lock clean

help:
	@sed -n 's/^#   \(make .*\)/\1/p' Makefile

install: $(VENV)/.installed-dev

install-bench: $(VENV)/.installed-bench

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 to 3.14 found; set PYTHON=" >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' || \
		{ echo "make: $(PYTHON) cannot create a venv (Debian: apt install python3-venv)" >&2; exit 2; }
	"$(PYTHON)" -m venv "$(VENV)"
	@touch $@

# The requirements are pinned with hashes, the build backend among them: nothing else is fetched.
$(VENV)/.installed-dev: requirements/dev.txt pyproject.toml | $(VENV)/.created
	$(PIP) install --quiet --require-hashes --requirement requirements/dev.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-bench: requirements/bench.txt $(VENV)/.installed-dev
	$(PIP) install --quiet --require-hashes --requirement requirements/bench.txt
	@touch $@

# arq and saq want an older redis-py than taskiq-redis and the tests: a venv of their own.
$(VENV)/.installed-bench-redis5: requirements/bench-redis5.txt | $(VENV)/.created
	"$(PYTHON)" -m venv "$(VENV)/redis5"
	$(VENV)/redis5/bin/python -m pip --disable-pip-version-check --no-input install --quiet \
		--require-hashes --requirement requirements/bench-redis5.txt
	@touch $@

up: install
	@exec $(BIN)/distsync up $(ARGS)

test: install
	$(BIN)/python -m pytest -m "not long" -n 2 --dist loadfile --ignore tests/process $(ARGS)
	$(BIN)/python -m pytest -m "not (long or alone)" -n 2 --dist loadfile --durations=10 \
		tests/process $(ARGS)
	$(BIN)/python -m pytest -m "alone and not long" --durations=10 tests/process $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

sim: install
	cd tests && $(abspath $(BIN))/python -m sim --seeds $(SEEDS) $(ARGS)
	cd tests && $(abspath $(BIN))/python -m sim.cache --seeds $(SEEDS)

mutants: install
	cd tests && $(abspath $(BIN))/python -m sim.mutants $(ARGS)
	cd tests && $(abspath $(BIN))/python -m property.queue_mutants
	cd tests && $(abspath $(BIN))/python -m sim.cache.mutants
	cd tests && $(abspath $(BIN))/python -m property.cache_script_mutants

chaos: install
	$(BIN)/python -m pytest -m long --durations=10 $(ARGS)

bench: bench-locks bench-queues bench-cache bench-operator

bench-locks: install-bench
	cd tests && $(abspath $(BIN))/python -m bench.locks $(ARGS)

bench-queues: install-bench $(VENV)/.installed-bench-redis5
	cd tests && $(abspath $(BIN))/python -m bench.queues $(ARGS)

bench-cache: install-bench
	cd tests && $(abspath $(BIN))/python -m bench.cache $(ARGS)

bench-operator: install
	cd tests && $(abspath $(BIN))/python -m bench.operator_idle $(ARGS)

# PLATFORMS=linux/amd64,linux/arm64 with BUILD_FLAGS=--push builds for both.
IMAGE_PREFIX ?= distsync
VERSION ?= 0.1.0
PYTHON_IMAGE ?= docker.io/library/python:3.13-slim-bookworm
PIP_OPTIONS ?=
PLATFORMS ?=
BUILD_FLAGS ?=

images:
	@if docker buildx version >/dev/null 2>&1 && docker info >/dev/null 2>&1; then \
		build="docker buildx build $(or $(BUILD_FLAGS),--load)"; \
	elif command -v podman >/dev/null; then build="podman build $(BUILD_FLAGS)"; \
	else echo "make: images needs a running Docker with buildx, or Podman" >&2; exit 2; fi; \
	for part in node operator; do \
		$$build $(if $(PLATFORMS),--platform $(PLATFORMS)) \
			--build-arg "PYTHON_IMAGE=$(PYTHON_IMAGE)" --build-arg "PIP_OPTIONS=$(PIP_OPTIONS)" \
			--build-arg "VERSION=$(VERSION)" \
			--file $$part/Dockerfile --tag "$(IMAGE_PREFIX)/$$part:$(VERSION)" . || exit 1; \
	done

e2e: install
	cd tests && $(abspath $(BIN))/python -m e2e $(ARGS)

generate: install
	$(BIN)/python helm/generate.py

lock:
	@command -v uv >/dev/null || { echo "make: lock needs uv (pip install uv)" >&2; exit 2; }
	@for extra in $(REQUIREMENTS); do \
		case $$extra in base) option= ;; *) option="--extra $$extra" ;; esac; \
		uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
			$$option -o requirements/$$extra.txt pyproject.toml || exit 1; \
	done

clean:
	rm -rf "$(VENV)" .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist
