# One virtual environment serves every target; each target does all the set-up that is still missing.
#   make train PYTHON=python3.12 TORCH="torch==2.14.0"
#   make test  TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
#   make test  CGC_CUDA=1 CGC_CUDA_ARCH="8.0 9.0 10.0"
PYTHON ?= python3
TORCH ?= torch==2.14.1 torchvision==0.29.1
JOBS ?= $(shell $(PYTHON) -c "import os; print(min(8, os.cpu_count()))")

VENV := .venv
BIN := $(VENV)/bin
# What is imported is compiled then; most of what is installed never is.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --no-compile
PYTEST := $(BIN)/python -m pytest
SPHINX := $(BIN)/python -m sphinx -q -c docs
# One thread a worker; tests of multi-threading ask for their threads.
WORKERS := -n $(JOBS) --dist worksteal
TEST := OMP_NUM_THREADS=1 $(PYTEST) tests $(WORKERS)
INTERPRETED := OMP_NUM_THREADS=1 $(PYTEST) tests/triton/interpreted $(WORKERS)

CPP := $(shell find csrc bench tests -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')

# Other settings are another environment, or another build.
stamp = $(VENV)/.$(1)-$(shell printf '%s' '$(2)' | cksum | cut -d' ' -f1)
TORCH_INSTALLED := $(call stamp,torch,$(PYTHON) $(TORCH))
INSTALLED := $(call stamp,installed,$(CGC_CPP) $(CGC_CUDA) $(CGC_CUDA_ARCH) $(CUDA_HOME) $(CXX) $(CXXFLAGS) $(LDFLAGS))

.DEFAULT_GOAL := help
.PHONY: help install train results photographs test test-full bench lint docs links gpu codegen fuzz sanitize-cpu mutants \
	dist wheel-check clean

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
	$(PIP) --no-build-isolation -e '.[train,test,bench,docs,dev,recipes]'
	touch $@

# Written at the end of every build of the libraries, so it is older than whatever changed since.
cgc_kernels/_build.json: $(filter csrc/%,$(CPP)) | $(INSTALLED)
	$(BIN)/python setup.py -q build_ext --inplace

train: install ## train baseline and CGC on the embedded data: table and pictures (minutes)
	$(BIN)/python python/train.py --compare

results: install ## every method on limited labels and harder images: a table (hours; goes on when stopped)
	$(BIN)/python python/experiments.py

photographs: install ## objects on photographs: fetch them, train every arm, write docs/photographs.md (goes on when stopped)
	$(BIN)/python python/photographs.py

# Two processes: Triton reads TRITON_INTERPRET when it is imported.
test: install ## all tests but the slow ones
	$(TEST) -m 'not slow'
	TRITON_INTERPRET=1 $(INTERPRETED) -m 'not slow'

test-full: install ## all tests
	$(TEST)
	TRITON_INTERPRET=1 $(INTERPRETED)

fuzz: install ## random calls of every backend, valid and invalid, for FUZZ_SECONDS (60); goes on where it stopped
	$(BIN)/python -m tests.tools.fuzz --seconds $(or $(FUZZ_SECONDS),60)

sanitize-cpu: install ## the CPU kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer (minutes)
	$(BIN)/python -m tests.cpu.sanitize

mutants: install ## wrong kernels, which the tests must notice (an hour or two; goes on when stopped)
	$(BIN)/python -m tests.tools.mutants triton --jobs $(JOBS)
	$(BIN)/python -m tests.tools.mutants cuda --jobs $(JOBS)

bench: install ## benchmarks, against peers and floors
	$(PYTEST) bench --benchmark-only

lint: install ## ruff, clang-format, and mypy on a user's script
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(CPP),$(BIN)/clang-format --dry-run -Werror $(CPP))
	$(BIN)/mypy

docs: install ## the pages as a site, with the API from its docstrings: build/docs/README.html
	$(SPHINX) -W --keep-going -b html . build/docs

links: install ## that the pages' links to other sites lead somewhere (needs the network)
	$(SPHINX) -b linkcheck . build/links

codegen: install ## registers, spills, occupancy and instructions of the GPU kernels, into build/codegen and docs/codegen.md
	$(BIN)/python -m bench.cuda_codegen
	$(BIN)/python -m bench.codegen

dist: install ## sdist, and a wheel for this platform with all that can be built here, into dist/
	rm -rf dist
	$(BIN)/python -m build -q --no-isolation --outdir dist
	ls -l dist

wheel-check: install ## one wheel works under a CPU build of torch 2.13 and a CUDA build of torch 2.14 (downloads both)
	$(BIN)/python tests/tools/wheel.py

gpu: install ## all that needs a CUDA device: tests, benchmark, compute-sanitizer; a record in docs/gpu.md (minutes)
	$(BIN)/python -m bench.gpu_run $(if $(RECORD),--record $(RECORD))

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info cgc_kernels/_cpu.so cgc_kernels/_cuda.so cgc_kernels/_build.json
