# SPDX-License-Identifier: Apache-2.0
# One command per habit. Needs Python 3.10 or newer (with venv), a C compiler and make; everything else is
# installed into .venv here. `make lib` needs no Python.

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

.PHONY: help lib install c-test abi abi-update .venv engine chat test test-all lint types format asan soak soak-asan freeze tsan cross portable wheel-check callgrind callgrind-update fuzz bench wheel clean

help:
	@echo "make chat      talk to the bundled model"
	@echo "make test      the tests; test-all: the slow ones too"
	@echo "make lint      ruff, mypy, clang-format, codespell; format: apply them"
	@echo "make asan      engine and hostile-file tests under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make tsan      the thread pool under ThreadSanitizer"
	@echo "make soak      conversations in threads, random stops and undos: no crash, no leak; SECONDS=60; soak-asan: sanitised"
	@echo "make freeze    a program by PyInstaller (onedir, onefile) and Nuitka, started; FREEZE='onedir onefile nuitka'"
	@echo "make cross     64-bit ARM and older x86 under qemu, AVX-VNNI by its encoding: the same bits"
	@echo "make portable  the engine for Linux (glibc, musl), macOS and Windows by zig; run here, under qemu and under wine"
	@echo "make callgrind instructions per token beside the baseline; callgrind-update: a new baseline"
	@echo "make fuzz      damaged files for every reader, FUZZ_SECONDS=60 for each"
	@echo "make lib       the C library, static and shared, into build/lib (no Python needed); install: PREFIX, DESTDIR"
	@echo "make c-test    the C library's tests: exported symbols, the header, files by path, examples in C and Node.js"
	@echo "make abi       what programs compiled before rely on is as it was (abidiff); abi-update: a new baseline"
	@echo "make bench     speed and memory of the bundled model, or BENCH_MODEL=FILE"
	@echo "make wheel     sdist and wheel into dist/"
	@echo "make wheel-check  every system's wheel, audited, installed into new environments, run there, under qemu and wine"
	@echo "make clean     remove what these made, .venv included"

$(VENV)/bin/python:
	$(CHECK_MACHINE)
	$(PYTHON) -m venv $(VENV)

# What a user needs: the package itself, in place.
$(VENV)/.installed: pyproject.toml setup.py src/build_engine.py | $(VENV)/bin/python
	$(PIP) install --quiet --editable .
	@touch $@ $(VENV)/.engine

# What a developer needs on top. By its name, because pip builds the engine again for '.[dev]'.
$(VENV)/.developer: $(VENV)/.installed
	$(PIP) install --quiet 'rwkv-cpu[dev]'
	@touch $@

# The engine again when a C file changed, without installing anything.
$(VENV)/.engine: $(VENV)/.installed $(ENGINE_SOURCES) | $(VENV)/.developer
	$(PY) setup.py --quiet build_ext --inplace
	@touch $@

.venv: $(VENV)/.developer
engine: $(VENV)/.engine

chat: $(VENV)/.installed
	@$(VENV)/bin/rwkv-cpu chat

# A process for each core, a file of tests at a time; what files share is made by one of them (tests/one_process.py).
# Where one file has most of the tests, `--dist load` hands them out one by one.
JOBS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
PYTEST = $(PY) -m pytest --numprocesses $(JOBS) --dist loadfile
test: $(VENV)/.engine
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.engine
	$(PYTEST)

# mypy cannot follow package_dir, so it sees the package as it installs: build/typed/rwkv_cpu/quantize.
TYPED := build/typed/rwkv_cpu
types: $(VENV)/.developer
	@rm -rf build/typed && mkdir -p $(TYPED)
	@ln -s $(CURDIR)/rwkv_cpu/* $(TYPED)/ && ln -s $(CURDIR)/quantize $(TYPED)/quantize
	@ln -s $(CURDIR)/benchmarks build/typed/benchmarks
	cd build/typed && $(CURDIR)/$(VENV)/bin/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/build/mypy -p rwkv_cpu -p benchmarks

C_FILES = $(shell find src examples tests -name '*.c' -o -name '*.h')
lint: types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(C_FILES)
	$(VENV)/bin/codespell $(shell git ls-files '*.py' '*.pyi' '*.c' '*.h' '*.md' Makefile)

format: $(VENV)/.developer
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(C_FILES)

# The instrumented engine goes into its own copy of the package; the interpreter is not instrumented, so the
# sanitiser's run time is preloaded (with the C++ one, which sentencepiece needs before it), and its leaks are not ours.
ASAN := build/asan
# test_allocations.py compiles a program of its own, without instrumentation.
ASAN_TESTS ?= tests/engine tests/hostile --ignore=tests/engine/test_allocations.py
ASAN_BUILD = RWKV_CPU_SANITIZE=address,undefined $(PY) setup.py --quiet build --build-base $(ASAN) --build-lib $(ASAN)/lib
ASAN_RUN = RWKV_CPU_SANITIZE=address,undefined \
  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)" \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
define CHECK_ASAN
	@test "$$(gcc -print-file-name=libasan.so)" != libasan.so || { echo "make: this gcc has no libasan; on Fedora: dnf install libasan libubsan" >&2; exit 1; }
endef
asan: $(VENV)/.developer
	$(CHECK_ASAN)
	$(ASAN_BUILD)
	$(ASAN_RUN) $(PYTEST) --dist load -o pythonpath="$(ASAN)/lib ." -o cache_dir=$(ASAN)/cache -m "not slow" $(ASAN_TESTS)
	gcc $(C_FLAGS) -g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined tests/c/library.c \
	  $$(find $(ASAN)/temp* -path '*/src/*.o') -o $(ASAN)/library -lm
	$(PY) examples/demo_for_c.py $(ASAN)/demo-world.rwkv
	rm -rf $(ASAN)/library.files && mkdir $(ASAN)/library.files
	$(ASAN)/library $(ASAN)/demo-world.rwkv rwkv_cpu/data/demo.rwkv $(ASAN)/library.files

# Conversations in threads that do what users do at random; hours of it: make soak SECONDS=36000.
SECONDS ?= 60
soak: $(VENV)/.engine
	$(PY) tests/soak/soak.py --seconds $(SECONDS) --threads 2

soak-asan: $(VENV)/.developer
	$(CHECK_ASAN)
	$(ASAN_BUILD)
	PYTHONPATH=$(ASAN)/lib $(ASAN_RUN) $(PY) tests/soak/soak.py --seconds $(SECONDS) --threads 2 --loose-memory

# Programs made of the wheel by PyInstaller and Nuitka, started, with an answer that is checked. FREEZE=onedir: one way.
FREEZE ?= onedir onefile nuitka
freeze: wheel
	$(PIP) install --quiet 'rwkv-cpu[freeze]'
	$(PY) tests/freeze/freeze.py "$$(ls -t dist/*.whl | head -n 1)" $(FREEZE)

# C programs of tests/: build/NAME/objects has the engine's objects with NAME's instrumentation, compiled on all cores.
C_SOURCES = $(shell find src -name '*.c')
C_HEADERS = $(shell find src -name '*.h')
C_FLAGS := -std=c11 -DRWKVC_VERSION='"test"' -ffp-contract=off -pthread -Wall -Wextra -Isrc

# Address space randomisation is off because older ThreadSanitizer run times cannot place their shadow otherwise.
TSAN := build/tsan
TSAN_CC = gcc $(C_FLAGS) -O1 -g1 -fsanitize=thread
TSAN_MODEL ?= rwkv_cpu/data/demo.rwkv
tsan:
	@$(MAKE) --no-print-directory --jobs=$(JOBS) $(TSAN)/pool_tsan
	TSAN_OPTIONS=halt_on_error=1 $$(command -v setarch >/dev/null && echo setarch $$(uname -m) -R) $(TSAN)/pool_tsan $(TSAN_MODEL)

$(TSAN)/objects/%.o: src/%.c $(C_HEADERS)
	@mkdir -p $(dir $@)
	@$(TSAN_CC) -c $< -o $@

$(TSAN)/pool_tsan: tests/c/pool_tsan.c $(C_SOURCES:src/%.c=$(TSAN)/objects/%.o)
	@$(TSAN_CC) $^ -o $@ -lm

# What it needs and does not find is skipped, with the packages to install.
cross: $(VENV)/.engine
	$(PYTEST) --dist load tests/cross/test_cross.py

# Wheels for other systems come from zig, which has the headers and libraries of all of them.
$(VENV)/.release: $(VENV)/.engine
	$(PIP) install --quiet 'rwkv-cpu[release]'
	@touch $@

# PORTABLE_TESTS="built or files": the tests by name.
PORTABLE_TESTS ?= test
portable: $(VENV)/.release
	$(PY) -m pytest tests/cross/test_portable.py -k "$(PORTABLE_TESTS)"

# WHEEL_CHECK="--all": every system's wheel; "--pythons 1": one Python only.
WHEEL_CHECK ?= --all
wheel-check: $(VENV)/.release
	$(PY) tests/wheel/check.py $(WHEEL_CHECK)

# Instructions of the scalar and AVX2 paths, which neither machine nor neighbours change.
callgrind: $(VENV)/.engine
	$(PY) tests/callgrind/check.py

callgrind-update: $(VENV)/.engine
	$(PY) tests/callgrind/check.py --update

# FUZZ_SECONDS for each of the C functions that meet a stranger's bytes and for each of Python's readers. The kernels are
# checked for undefined behaviour by `make asan`; here they only follow from what was read, and compile six times as fast
# with the address sanitiser alone.
FUZZ := build/fuzz
FUZZ_SECONDS ?= 60
FUZZ_CHECKS = address,undefined
FUZZ_CC = clang $(C_FLAGS) -O1 -g1 -fno-sanitize-recover=undefined
FUZZ_OPTIONS = -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -artifact_prefix=$(FUZZ)/
FUZZ_TARGETS := $(addprefix $(FUZZ)/,model_open world_vocabulary app)
fuzz: $(VENV)/.engine
	@command -v clang >/dev/null || { echo "make: libFuzzer comes with clang; on Debian and Ubuntu: apt install clang" >&2; exit 1; }
	@$(MAKE) --no-print-directory --jobs=$(JOBS) $(FUZZ_TARGETS)
	$(PY) tests/fuzz/make_seeds.py $(addsuffix .corpus,$(FUZZ_TARGETS))
	$(FUZZ)/model_open $(FUZZ_OPTIONS) $(FUZZ)/model_open.corpus
	$(FUZZ)/world_vocabulary $(FUZZ_OPTIONS) -max_len=16384 $(FUZZ)/world_vocabulary.corpus
	$(FUZZ)/app $(FUZZ_OPTIONS) $(FUZZ)/app.corpus
	$(PY) tests/fuzz/readers.py --seconds $(FUZZ_SECONDS)

$(FUZZ)/objects/isa/isa_%.o: FUZZ_CHECKS = address
$(FUZZ)/objects/%.o: src/%.c $(C_HEADERS)
	@mkdir -p $(dir $@)
	@$(FUZZ_CC) -fsanitize=fuzzer-no-link,$(FUZZ_CHECKS) -c $< -o $@

$(FUZZ_TARGETS): $(FUZZ)/%: tests/fuzz/%.c $(C_SOURCES:src/%.c=$(FUZZ)/objects/%.o)
	@$(FUZZ_CC) -fsanitize=fuzzer,address,undefined $^ -o $@ -lm

# The library for other languages, with nothing but a C compiler. CMakeLists.txt is the same for those who have CMake.
LIB := build/lib
LIB_VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' rwkv_cpu/_version.py)
LIB_ABI := $(shell sed -n 's/^\#define RWKVC_ABI_VERSION //p' src/rwkv_cpu.h)
LIB_FLAGS := -std=c11 -O3 -ffp-contract=off -fvisibility=hidden -fPIC -pthread -Wall -Wextra -Isrc $(CFLAGS)
LIB_OBJECTS = $(patsubst src/%.c,$(LIB)/objects/%.o,$(C_SOURCES))
PREFIX ?= /usr/local
LIBDIR ?= lib
ifeq ($(shell uname -s),Darwin)
LIB_SHARED := librwkv_cpu.$(LIB_VERSION).dylib
LIB_NAMES := librwkv_cpu.$(LIB_ABI).dylib librwkv_cpu.dylib
LIB_LINK = -dynamiclib -install_name @rpath/librwkv_cpu.$(LIB_ABI).dylib
else
LIB_SHARED := librwkv_cpu.so.$(LIB_VERSION)
LIB_NAMES := librwkv_cpu.so.$(LIB_ABI) librwkv_cpu.so
LIB_LINK = -shared -Wl,-soname,librwkv_cpu.so.$(LIB_ABI) -Wl,--version-script=cmake/rwkv_cpu.map
endif

lib: $(LIB)/$(LIB_SHARED) $(LIB)/librwkv_cpu.a $(LIB)/rwkv_cpu.pc

$(LIB)/objects/%.o: src/%.c $(shell find src -name '*.h') rwkv_cpu/_version.py
	@mkdir -p $(dir $@)
	$(CC) $(LIB_FLAGS) -DRWKVC_VERSION='"$(LIB_VERSION)"' -c $< -o $@

$(LIB)/$(LIB_SHARED): $(LIB_OBJECTS) cmake/rwkv_cpu.map
	$(CC) $(LIB_LINK) -pthread $(LDFLAGS) $(LIB_OBJECTS) -o $@ -lm
	@for name in $(LIB_NAMES); do ln -sf $(LIB_SHARED) $(LIB)/$$name; done

$(LIB)/librwkv_cpu.a: $(LIB_OBJECTS)
	@rm -f $@
	$(AR) rcs $@ $(LIB_OBJECTS)

# Written anew each time: PREFIX may be another.
.PHONY: $(LIB)/rwkv_cpu.pc
$(LIB)/rwkv_cpu.pc: cmake/rwkv_cpu.pc.in
	@mkdir -p $(LIB)
	@sed -e 's|@CMAKE_INSTALL_PREFIX@|$(PREFIX)|' -e 's|@CMAKE_INSTALL_LIBDIR@|$(LIBDIR)|' \
	  -e 's|@CMAKE_INSTALL_INCLUDEDIR@|include|' -e 's|@PROJECT_VERSION@|$(LIB_VERSION)|' $< > $@

install: lib
	install -d $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/$(LIBDIR)/pkgconfig
	install -m 644 src/rwkv_cpu.h $(DESTDIR)$(PREFIX)/include
	install -m 644 $(LIB)/librwkv_cpu.a $(DESTDIR)$(PREFIX)/$(LIBDIR)
	install -m 755 $(LIB)/$(LIB_SHARED) $(DESTDIR)$(PREFIX)/$(LIBDIR)
	for name in $(LIB_NAMES); do ln -sf $(LIB_SHARED) $(DESTDIR)$(PREFIX)/$(LIBDIR)/$$name; done
	install -m 644 $(LIB)/rwkv_cpu.pc $(DESTDIR)$(PREFIX)/$(LIBDIR)/pkgconfig

c-test: $(VENV)/.engine lib
	$(PY) -m pytest tests/library

# Types and functions beside those of cmake/rwkv_cpu.abi: whatever a compiled program relies on is as it was. What was
# added on purpose goes into the file by abi-update.
ABI_LIB := build/abi
.PHONY: $(ABI_LIB)/rwkv_cpu.abi
$(ABI_LIB)/rwkv_cpu.abi:
	@command -v abidiff >/dev/null || { echo "make: no abidiff; on Debian and Ubuntu: apt install abigail-tools" >&2; exit 1; }
	$(MAKE) --silent --jobs=$(JOBS) lib LIB=$(ABI_LIB) CFLAGS="-g -O0 $(CFLAGS)"
	abidw --headers-dir src --drop-private-types --exported-interfaces-only --drop-undefined-syms --no-corpus-path \
	  --no-comp-dir-path --no-show-locs --out-file $@ $(ABI_LIB)/$(LIB_SHARED)

abi: $(ABI_LIB)/rwkv_cpu.abi
	abidiff --no-added-syms cmake/rwkv_cpu.abi $<

abi-update: $(ABI_LIB)/rwkv_cpu.abi
	cp $< cmake/rwkv_cpu.abi

BENCH_MODEL ?= demo
bench: $(VENV)/.installed
	$(VENV)/bin/rwkv-cpu bench $(BENCH_MODEL)

wheel: $(VENV)/.developer
	$(PY) -m build --outdir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info rwkv_cpu/_engine*.so
