# Two commands: `make quickstart` runs the main job, `make test` passes the tests. Both set up by themselves.
PYTHON ?= python3
CORPUS ?=
export CORPUS

TIER ?= -m "not long"
PYTEST = .venv/bin/python -m pytest --durations=15 $(TIER)

.PHONY: help setup setup-system quickstart slurm-demo test test-all lint unit parallel mutations format clean

help:                   ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 16

setup:                  ## build .venv: MPI, torch, Horovod, mpi4py, h5py, hvdlm (no root)
	@$(PYTHON) scripts/setup_env.py

setup-system:           ## Debian, root: Open MPI, parallel HDF5, SLURM, munge, ssh for the complete tests
	@scripts/setup_system.sh

quickstart: setup       ## the main job on this machine, under 5 minutes (CORPUS=path for your own text)
	@scripts/quickstart.sh

slurm-demo: setup       ## a real SLURM on this machine: one command from raw text to the scaling report, preempted once
	@rm -rf runs/slurm-demo
	@.venv/bin/python scripts/mini_slurm.py -- scripts/slurm_demo.sh

test: setup lint unit parallel  ## what a change can break: linters, types, units, ranks, the core of SLURM and hosts
	@echo "Left out: tests marked long (benches, tuning, the README's tour, long chains on SLURM); make test-all has them."

test-all: setup lint    ## all tests, as CI runs them
	@$(MAKE) unit parallel TIER=

lint: setup             ## ruff and mypy
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	@rm -rf build/types && mkdir -p build/types/hvdlm
	@ln -s $(CURDIR)/hvdlm/* $(CURDIR)/preprocessing $(CURDIR)/perf $(CURDIR)/jobs build/types/hvdlm  # one tree, as imported
	MYPYPATH=build/types .venv/bin/python -m mypy -p hvdlm
	.venv/bin/python -m mypy scripts

unit: setup             ## tests of one process, two at a time, a thread each
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist worksteal tests --ignore=tests/parallel --ignore=tests/slurm --ignore=tests/hosts

parallel: setup         ## tests on 1 to 8 MPI ranks, Horovod included; on a real SLURM and on separate hosts where they can be had
	$(PYTEST) tests/parallel tests/slurm tests/hosts

mutations: setup        ## does a test fail for each of some faults that training on a mesh could have? Minutes
	.venv/bin/python tests/mutations.py

format: setup           ## let ruff rewrite the sources
	.venv/bin/python -m ruff check --fix .
	.venv/bin/python -m ruff format .

clean:                  ## remove .venv and runs
	rm -rf .venv runs build *.egg-info
