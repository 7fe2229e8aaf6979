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
SOURCES := setup.py pyproject.toml constraints.txt $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')

.PHONY: demo test test-long test-all sanitize bench bench-check gpu-suite wheel wheel-check lint clean

demo: $(VENV)/.demo
	$(BIN)/python examples/digits.py $(ARGS)

test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-long: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m long

# both in one session, which collects tests once and is idle at one end only
test-all: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m ""

# the CPU kernels' tests with the extension built for the address and undefined-behaviour sanitizers, on every level
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined
SANITIZED := test_gemm_kernels test_vector_kernels test_lookup_kernels test_depthwise_kernels test_stored_kernels
SANITIZED += test_format_kernels test_score_panels test_transposed_tiles test_random_layers
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

# one with the CPU's kernels alone and, where nvcc is, one with CUDA kernels; a wheel takes whatever lies in build/lib
wheel: $(VENV)/.torch
	rm -rf dist build/lib.*
	FROZEN_KERNELS_CUDA=0 $(PIP) wheel -q --no-deps -w dist/cpu .
	if command -v nvcc || test -x /usr/local/cuda/bin/nvcc; then FROZEN_KERNELS_CUDA=1 $(PIP) wheel -q --no-deps -w dist/cuda .; fi
	ls -l dist/*/*.whl

# each wheel in a fresh environment beside another torch, without the sources
WHEEL_TORCH ?= torch==2.12.0
wheel-check: wheel
	for wheel in dist/*/*.whl; do PYTHON=$(PYTHON) TORCH="$(WHEEL_TORCH)$(LOCAL)" tests/check_wheel.sh $$wheel || exit 1; done

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc tests/cuda tests/aarch64 \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' \) -print0 | xargs -0 -r $(BIN)/clang-format --dry-run -Werror

$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q "$(TORCH)" 2>/dev/null || $(PIP) install "$(TORCH)" --extra-index-url $(TORCH_INDEX)
	touch $@

# the development set contains the demo's
$(VENV)/.demo: $(VENV)/.torch $(SOURCES)
	if test -e $(VENV)/.dev; then $(MAKE) $(VENV)/.dev; else $(PIP) install -q -e '.[demo]' -c constraints.txt; fi
	touch $@

$(VENV)/.dev: $(VENV)/.torch $(SOURCES)
	$(PIP) install -q -e '.[dev]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) build dist out *.egg-info frozen_kernels/_C*.so frozen_kernels/_cuda*.so
