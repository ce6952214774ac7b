# One-line targets; each is what CI and CONTRIBUTING use.
PYTHON ?= python

install:        ## build and install into the current environment
	$(PYTHON) -m pip install .

develop:        ## editable install with everything the tests need
	$(PYTHON) -m pip install -e ".[test]"

native:         ## rebuild the native libraries in place (for editable installs)
	cmake -S . -B build/native -G Ninja -DCCT_PYTHON=$(PYTHON) -DCCT_CUDA=$(or $(CCT_CUDA),auto) && cmake --build build/native

test:           ## the whole test suite
	$(PYTHON) -m pytest

sanitize:       ## the CPU kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, without PyTorch
	for kind in address,undefined thread; do \
	  cmake -S . -B build/sanitize-$$kind -G Ninja -DCCT_PYTHON=$(PYTHON) -DCCT_CUDA=0 -DCCT_TESTS=1 -DCCT_SANITIZE=$$kind && \
	  cmake --build build/sanitize-$$kind --target cct_tests && ctest --test-dir build/sanitize-$$kind --output-on-failure || exit 1; \
	done

bench:          ## benchmarks with measured roofs; results under bench/results
	$(PYTHON) -m pytest bench --benchmark

gpu:            ## build, parity tests, sanitizer and benchmarks on the GPU of this machine, under nine minutes
	PYTHON=$(PYTHON) bench/gpu.sh

lint:           ## ruff, as CI runs it
	$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check .

format:         ## ruff and clang-format
	$(PYTHON) -m ruff check --fix . && $(PYTHON) -m ruff format . && git ls-files 'csrc/*' | grep -E '\.(h|cpp|cu|cuh)$$' | xargs clang-format -i

dist:           ## an sdist and a wheel for this PyTorch
	$(PYTHON) -m build --no-isolation

clean:
	rm -rf build dist *.egg-info cct_kernels/lib

help:           ## this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/: .*##/\t/'

.PHONY: install develop native test sanitize bench gpu lint format dist clean help
