# make demo | test | check | venv: each sets up what it needs by itself, once (Python >= 3.11, make, git).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

# What pip is told to install as torch. Where pip finds only the CUDA build (several GB on Linux), add the index of
# PyTorch's CPU builds, as its installation page gives it: make venv TORCH_INSTALL='torch==2.13.0 --index-url ...'
TORCH_INSTALL ?= torch==2.13.0

# Test processes; each computes on one core.
JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

.PHONY: demo test check lint venv clean

demo: venv
	$(BIN)/xmsd demo

test: venv
	$(PYTEST)

check: lint
	$(PYTEST) -m "not slow"

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

venv: $(VENV)/.installed

# The stamp comes last: an installation that was cut off is taken up again.
$(VENV)/.installed: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "xmsd: error: no python3 found; install Python 3.11 or set PYTHON=..." >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "xmsd: error: $(PYTHON) is older than Python 3.11; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "setting up $(VENV), once: PyTorch, JAX and the rest, about 2 GB"
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH_INSTALL)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV) runs dist .pytest_cache .ruff_cache .hypothesis
