# One virtual environment serves every target; each target does all the set-up that is still missing.
#   make train PYTHON=python3.12 TORCH="torch==2.14.0"
#   make test  TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
TORCH ?= torch==2.14.1 torchvision==0.29.1
JOBS ?= $(shell $(PYTHON) -c "import os; print(min(8, os.cpu_count()))")

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install
PYTEST := $(BIN)/python -m pytest
# One thread a worker; tests of multi-threading ask for their threads.
TEST := OMP_NUM_THREADS=1 $(PYTEST) tests -n $(JOBS) --dist worksteal

CPP := $(shell find csrc bench tests -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')

# Other settings are another environment, or another build.
stamp = $(VENV)/.$(1)-$(shell printf '%s' '$(2)' | cksum | cut -d' ' -f1)
TORCH_INSTALLED := $(call stamp,torch,$(PYTHON) $(TORCH))
INSTALLED := $(call stamp,installed,$(CGC_CPP) $(CXX) $(CXXFLAGS) $(LDFLAGS))

.DEFAULT_GOAL := help
.PHONY: help install train results test test-full bench lint gpu clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

install: $(INSTALLED) cgc_kernels/_build.json ## set up .venv: torch, the other dependencies, this package

$(TORCH_INSTALLED):
	$(PYTHON) -c 'import sys; sys.exit("Python must be at least 3.10: make PYTHON=..." if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) -U pip 'setuptools>=77'
	$(PIP) $(TORCH)
	touch $@

$(INSTALLED): $(TORCH_INSTALLED) pyproject.toml setup.py
	rm -f $(VENV)/.installed-*
	$(PIP) --no-build-isolation -e '.[train,test,bench,dev]'
	touch $@

# Written at the end of every build of the C++ library, so it is older than whatever changed since.
cgc_kernels/_build.json: $(filter csrc/%,$(CPP)) | $(INSTALLED)
	$(BIN)/python setup.py -q build_ext --inplace

train: install ## train baseline and CGC on the embedded data: table and pictures (minutes)
	$(BIN)/python python/train.py --compare

results: install ## the table of docs/results.md: every method, limited labels, harder images (hours; goes on when stopped)
	$(BIN)/python python/experiments.py

test: install ## all tests but the slow ones
	$(TEST) -m 'not slow'

test-full: install ## all tests
	$(TEST)

bench: install ## benchmarks, against peers and floors
	$(PYTEST) bench --benchmark-only

lint: install ## ruff and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(CPP),$(BIN)/clang-format --dry-run -Werror $(CPP))

gpu: install ## all tests and benchmarks that need a CUDA device, and the sanitizer
	@$(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())" \
	  || { echo "make gpu needs a CUDA device and a CUDA build of torch (TORCH=...): none here" >&2; exit 1; }
	$(PYTEST) tests -m gpu
	@if [ -e cgc_kernels/_cuda.so ]; then \
	  compute-sanitizer --error-exitcode 1 $(PYTEST) tests -m gpu; \
	else echo "no CUDA library of ours: nothing for compute-sanitizer"; fi
	$(PYTEST) bench --benchmark-only

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info cgc_kernels/_cpu.so cgc_kernels/_build.json
