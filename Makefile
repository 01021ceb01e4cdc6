# SPDX-License-Identifier: Apache-2.0
# One command per habit. Needs Python 3.10 or newer (with venv), a C compiler and make; everything else is
# installed into .venv here.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
ENGINE_SOURCES := $(shell find src -name '*.c' -o -name '*.h' -o -name 'build_engine.py')

# Says what is missing and how to get it, before pip fails with a page of text.
define CHECK_MACHINE
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON): install Python 3.10 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make: $$($(PYTHON) --version) is too old: rwkv_cpu needs 3.10 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "make: this Python has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@command -v gcc >/dev/null || command -v cc >/dev/null || { \
	  echo "make: no C compiler; on Debian and Ubuntu: apt install gcc" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { \
	  echo "make: Python.h is missing; on Debian and Ubuntu: apt install python3-dev" >&2; exit 1; }
endef

.PHONY: help .venv engine chat test
help:
	@echo "make chat | test | test-all | lint | format | asan | tsan | fuzz | bench | wheel | clean"

$(VENV)/bin/python:
	$(CHECK_MACHINE)
	$(PYTHON) -m venv $(VENV)

# What a user needs: the package itself, in place.
$(VENV)/.installed: pyproject.toml setup.py src/build_engine.py | $(VENV)/bin/python
	$(PIP) install --quiet --editable .
	@touch $@

# What a developer needs on top.
$(VENV)/.developer: $(VENV)/.installed
	$(PIP) install --quiet --editable '.[dev]'
	@touch $@

# The engine again when a C file changed, without installing anything.
$(VENV)/.engine: $(VENV)/.developer $(ENGINE_SOURCES)
	$(PY) setup.py --quiet build_ext --inplace
	@touch $@

.venv: $(VENV)/.developer
engine: $(VENV)/.engine

chat: $(VENV)/.installed
	@$(VENV)/bin/rwkv-cpu chat

test: $(VENV)/.engine
	$(PY) -m pytest -m "not slow"
