# One command each. `make` alone lists them.
#
#   make PYTHON=/usr/bin/python3.12 test     with another Python (3.11 or newer)
#   make N=20000 simulate                    more rounds

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
N      ?= 1000
ROUNDS ?= 20

# What the tests use of Debian: real file systems, loop devices, DICOM tools of others.
PACKAGES := xfsprogs btrfs-progs e2fsprogs util-linux dcmtk python3-venv

.PHONY: help venv packages demo demo-stop test lint bench simulate drill
# Each step needs the one before it: `make -j` must not change that.
.NOTPARALLEL:

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile

venv: $(VENV)/.ready ## .venv with raidd and all that its tests need

# The first thing that is missing is named, with what to do about it, before anything is made.
$(VENV)/.ready: pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { echo "make: there is no $(PYTHON): sudo apt-get install python3 python3-venv, or make PYTHON=…" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than Python 3.11: make PYTHON=…" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "make: python3-venv is missing: sudo apt-get install python3-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv "$(VENV)"
	"$(BIN)/pip" install --quiet --disable-pip-version-check --editable '.[test]'
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

demo: venv ## six folders, real images, two dead disks, and everything comes back
	@sh demo.sh

demo-stop: ## end what `make demo` left running
	@sh demo.sh stop

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
	RAIDD_SIMULATE=$(N) "$(BIN)/pytest" -s tests/simulation

drill: venv ## ROUNDS of real power cuts and dead disks (as root: loop devices)
	RAIDD_DRILL=$(ROUNDS) "$(BIN)/pytest" -s tests/probe
