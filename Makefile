# SPDX-License-Identifier: MIT
# Daily work. ./bootstrap sets the environment up; these targets expect .venv.
PYTHON = .venv/bin/python
PYTEST = .venv/bin/pytest

.PHONY: all build test fast boot lint asan bench clean

all: build

build:            ## compile the native core and the embedded guest in place
	.venv/bin/pip install --quiet --no-build-isolation --no-deps --editable .

test: build       ## all but the nightly ones
	$(PYTEST) -q -m "not nightly"

fast: build       ## without whole-kernel boots
	$(PYTEST) -q -m "not nightly and not boot and not network"

lint:
	.venv/bin/ruff check imgvm tests benchmarks
	.venv/bin/mypy
	$(PYTEST) -q tests/style

asan:             ## native tests and the embedded guest under AddressSanitizer and UBSan
	tests/asan

bench: build      ## ratios against peers, measured side by side
	$(PYTHON) -m benchmarks

clean:
	rm -rf build imgvm/vmm/_native*.so imgvm/_guest/*.elf .pytest_cache .mypy_cache .ruff_cache
