# make quickstart   set up .venv, then train the bundled base on the bundled data and show before and after
# make test         set up .venv, then run the tests
# make test-slow    the tests that take minutes or read a corpus of your own (HYBRID_FT_REAL_DATA)
# make test-kernels the GPU kernels' long tests, none of which needs a GPU. Of both, SHARE=0.5 takes half of the cases
# make test-faults  the battery of faults: kills, damage, signals, full disks; FAULTS=0.1 is a tenth of it
# make gpu-check    PART=1, then PART=2: what must be known of a GPU, under five minutes each; DRY=1 tries it without one
# make gpu-wheels   fetch what make gpu-check needs on a GPU machine without a network
# make test-gpu     the GPU kernels on this machine's GPU      make bench-gpu   its times beside its rivals' in one table
# make docs         docs/recipe.md from the recipe's schema, docs/images/rooms.svg from the imports
# make lint         ruff: rules and format        make typecheck   mypy
# make setup        only the set-up               make clean       remove it
#
# PYTHON=python3.12     the interpreter that .venv is made from, 3.11 to 3.13
# TORCH="..."           what pip install is given for torch, instead of the build that fits this machine
# VENV=folder           an environment that exists already; TORCH= leaves its torch as it is
# CONSTRAINTS=          the newest versions that pyproject.toml allows, not the tested ones
PYTHON ?= python3
VENV ?= .venv
TORCH ?= auto
CONSTRAINTS ?= constraints.txt

BIN := $(VENV)/bin

# Tests start dozens of processes, which would each compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

READY := $(VENV)/.ready
# One thread per test process: two processes with all cores each only wait for one another. Three on two cores: some tests wait.
# worksteal: neighbours stay in one process, and with them what a file of tests makes once.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --confcutdir=tests

.PHONY: help quickstart test test-slow test-kernels test-faults gpu-check gpu-wheels test-gpu bench-gpu docs setup lint typecheck clean
.DELETE_ON_ERROR:

help: # what stands above
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

docs: $(READY)
	$(BIN)/python scripts/make_recipe_docs.py
	$(BIN)/python scripts/make_recipe_costs.py
	$(BIN)/python scripts/make_rooms_picture.py

quickstart: $(READY)
	$(BIN)/hybrid-ft run quickstart

test: $(READY)
	$(PYTEST) -n 3 --dist worksteal -m 'not slow and not real_data and not kernels and not gpu and not faults'

# bitsandbytes comes now and not with the set-up: where it is, PEFT imports it and every start takes a second more. torchao, whose
# imports write to the screen, does not come at all: without it the test of int8 exports skips. The S3 server on loopback is 200 MB,
# lm_eval with what it needs 380 MB, half a minute.
test-slow: $(READY) $(VENV)/.slow
	HYBRID_FT_SHARE=$(or $(SHARE),1) $(PYTEST) -n 2 -m 'slow or real_data'

$(VENV)/.slow: $(READY)
	@$(BIN)/python -m pip install -q $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) bitsandbytes s3fs 'moto[server]' lm_eval
	@touch $@

test-kernels: $(READY)
	HYBRID_FT_SHARE=$(or $(SHARE),1) $(PYTEST) -n 2 -m kernels tests/kernels

test-faults: $(READY)
	HYBRID_FT_FAULTS=$(or $(FAULTS),1) $(PYTEST) -n 2 -m faults tests/faults

# A GPU machine that has torch needs no network: any Python with what is needed will do, .venv's first.
WITH = for python in $(BIN)/python $(PYTHON); do \
	    "$$python" -c 'import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))' $(1) \
	    2>/dev/null && break; python=; done; test "$$python" || { $(MAKE) setup && python=$(BIN)/python; }

# Results go to OUT=folder.
gpu-check:
	@$(call WITH,torch triton) && exec "$$python" benchmarks/gpu_check --part $(or $(PART),1) \
	    --out $(or $(OUT),benchmarks/results) $(if $(DRY),--dry)

gpu-wheels:
	@$(PYTHON) scripts/gpu_check_wheels.py

# No -n: two processes would share the GPU.
test-gpu: .typing/hybrid_ft
	@$(call WITH,torch triton pytest) && PYTHONPATH=.typing OMP_NUM_THREADS=1 exec "$$python" -m pytest --confcutdir=tests \
	    -rs -m gpu $$(find tests/kernels -name 'test_triton*.py') tests/hybrid_model/layers/test_attention.py tests/hybrid_model/test_triton.py

# BENCH= is for the options that it knows.
bench-gpu:
	@$(call WITH,torch) && exec "$$python" benchmarks/gpu --out benchmarks/results/gpu.jsonl $(BENCH)

setup: $(READY)

# The stamp is written last: a set-up that was interrupted is taken up again by the next make.
$(READY): pyproject.toml $(CONSTRAINTS) scripts/install_torch.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	    "Python 3.11 to 3.13 is needed, $(PYTHON) is %d.%d; set PYTHON=, for example PYTHON=python3.12" % v[:2])'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) \
	    || { echo 'No venv module; on Debian or Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@echo 'Setting up $(VENV); the first time takes a few minutes.'
ifeq ($(TORCH),auto)
	@$(BIN)/python scripts/install_torch.py
	@# the version that this torch's CUDA build asks for; its CPU build brings none, and any other may compile otherwise
	@$(BIN)/python -m pip install -q 'triton==3.7.1; platform_system == "Linux"'
else ifneq ($(TORCH),)
	@$(BIN)/python -m pip install -q $(TORCH)
endif
	@$(BIN)/python -m pip install -q $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[dev]'
	@touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow the editable install's import hook. .typing/hybrid_ft is a view of the package for it: one
# link per folder, since a single link to the root would be a loop. mypy starts inside .typing because from the root
# it takes our datasets/ and kernels/ for Hugging Face's.
TYPED := __init__.py cli.py commands errors.py finetune hybrid_model kernels
.typing/hybrid_ft:
	@mkdir -p $@ && for part in $(TYPED); do ln -sfn "../../$$part" "$@/$$part"; done

typecheck: $(READY) .typing/hybrid_ft
	bin=$$(cd $(BIN) && pwd) && cd .typing && "$$bin/python" -m mypy --config-file ../pyproject.toml -p hybrid_ft

clean:
	rm -rf .venv .venv-oldest .typing build *.egg-info .pytest_cache .mypy_cache .ruff_cache
