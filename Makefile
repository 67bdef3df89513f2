# One command each. `make` alone lists them.
#
#   make PYTHON=/usr/bin/python3.12 test     with another Python (3.11 or newer)
#   make N=20000 simulate                    more rounds
#   make KILL="0 5" demo                     other disks die

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
N      ?= 1000
ROUNDS ?= 20
KILL   ?= 1 4

# What the tests use of Debian: real file systems, loop devices, DICOM tools of others.
PACKAGES := xfsprogs btrfs-progs e2fsprogs util-linux dcmtk python3-venv

.PHONY: help venv packages demo demo-stop test lint bench simulate drill
# Each step needs the one before it: `make -j` must not change that.
.NOTPARALLEL:

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile

venv: $(VENV)/.ready ## .venv with raidd and all that its tests need

# Nothing is left outside .venv: no download cache; and the demo's bytecode goes in there as well.
PIP := "$(BIN)/pip" install --quiet --quiet --disable-pip-version-check --no-cache-dir
DEMO := PYTHONPYCACHEPREFIX="$(abspath $(VENV))/pycache" "$(BIN)/python" -m tests.demo.demo

# raidd and what the demo needs: less than the tests do, so that it starts sooner. The first thing that is missing is
# named, with what to do about it, before anything is made.
$(VENV)/.ready-demo: pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { echo "make: there is no $(PYTHON): sudo apt-get install python3 python3-venv, or make PYTHON=…" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than Python 3.11: make PYTHON=…" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "make: python3-venv is missing: sudo apt-get install python3-venv" >&2; exit 1; }
	@echo "making $(VENV): raidd and the libraries it stands on (a minute, once)"
	@"$(PYTHON)" -m venv "$(VENV)"
	@$(PIP) --editable '.[demo]'
	@touch "$@"

$(VENV)/.ready: pyproject.toml $(VENV)/.ready-demo
	$(PIP) --editable '.[test]'
	@touch "$@"

# Installs what is missing where that can be done without asking anybody: as root, with apt-get. Elsewhere it says
# what is missing; the tests that need it say "skipped", and why.
packages:
	@command -v dpkg-query >/dev/null || exit 0; \
	missing=''; \
	for package in $(PACKAGES); do \
	    dpkg-query -W -f='$${Status}' "$$package" 2>/dev/null | grep -q ' installed$$' || missing="$$missing $$package"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing; \
	else \
	    echo "make: not installed, so some tests are skipped:$$missing" >&2; \
	fi

demo: $(VENV)/.ready-demo ## six folders, real images, two dead disks (KILL="1 4"), and everything comes back
	@$(DEMO) --kill "$(KILL)" --python "$(PYTHON)"

demo-stop: ## end what `make demo` left running
	@if [ -e "$(VENV)/.ready-demo" ]; then $(DEMO) stop; else echo "no demo is running"; fi

# Two workers; tests that use loop devices, or measure, stay together in one of them (tests/conftest.py).
test: packages venv lint ## lint, then all tests
	"$(BIN)/pytest" -n 2 --dist loadgroup

lint: venv ## ruff, mypy, the law of imports
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"
	"$(BIN)/lint-imports"

bench: venv ## how fast it is on this machine (as root: loop devices)
	@set -e; for benchmark in benchmarks/bench_*.py; do echo "== $$benchmark"; "$(BIN)/python" "$$benchmark"; done

simulate: venv ## N random lives of an array in memory, against a dict
	RAIDD_SIMULATE=$(N) "$(BIN)/pytest" -s tests/probe/test_array_machine.py

drill: venv ## ROUNDS of real power cuts and dead disks (as root: loop devices)
	RAIDD_DRILL=$(ROUNDS) "$(BIN)/pytest" -s tests/probe/test_kill.py tests/probe/test_power_cut.py
