# make demo    train both stages on generated images and segment images never trained on (6 minutes on 2 cores)
# make test    checks and tests
# Both set up what they need in .venv. Needed on the machine: python3 (3.10 to 3.14, with venv and headers), g++, make.
# DDN_CUDA=OFF|ON|AUTO, TORCH_CUDA_ARCH_LIST and MAX_JOBS reach the build. TORCH names the torch to install, TORCH_INDEX
# the package index to take it from: where the default index serves CUDA builds of several gigabytes, PyTorch's own
# index of CPU builds.

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
TORCH_INDEX ?=
PYTEST_ARGS ?= -n auto

BIN     := $(VENV)/bin
SOURCES := $(shell find csrc cmake -type f) CMakeLists.txt setup.py pyproject.toml

.DELETE_ON_ERROR:
.PHONY: demo test lint experiment benchmark gpu build clean

demo: build
	$(BIN)/python -m ddn_fast.demo --out demo

test: build lint
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

lint: build
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(shell find csrc tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')

# The paper's point on generated images: masks alone against masks and tags (40 minutes on 2 cores; goes on if stopped).
experiment: build
	$(BIN)/python benchmarks/few_shot.py --out runs/few_shot --keep
	$(BIN)/python benchmarks/readme.py

# Every op and the whole network against stock PyTorch; JSON, plots, and README's tables of those (about half an hour
# on 2 cores). The other tables are of predict.py, training_step.py and few_shot.py (make experiment).
benchmark: build
	$(BIN)/python benchmarks/ops.py
	$(BIN)/python benchmarks/end_to_end.py
	$(BIN)/python benchmarks/end_to_end.py --memory
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/data_loading.py
	$(BIN)/python benchmarks/readme.py

# On a machine with a CUDA device: builds for it, GPU tests, compute-sanitizer, benchmarks, ncu; JSON after every step
# into OUT (default benchmarks/results). At most BUDGET seconds; PART="build test" chooses, COMMIT names the sources
# where there is no git. Uses GPU_PYTHON as it is, with what docs/gpu.md lists; no network, no venv.
GPU_PYTHON ?= python3
gpu:
	$(GPU_PYTHON) benchmarks/gpu.py $(if $(PART),--part $(PART)) $(if $(BUDGET),--budget $(BUDGET)) $(if $(COMMIT),--commit $(COMMIT))

build: $(VENV)/.built

# torch by itself and first: a range, or another package's wish for it, may fetch a CUDA build of several gigabytes.
$(VENV)/.torch: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' || \
	  { echo 'wanted Python 3.10 to 3.14 as PYTHON=, got' `$(PYTHON) --version`; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo 'python3 -m venv failed: on Debian, apt install python3-venv python3-dev'; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.built: $(VENV)/.torch $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) build demo runs ddn_fast/_C*.so *.egg-info
