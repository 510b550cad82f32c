# make demo   the whole recipe, small, on real Chinese text     make demo FRESH=1   the same from the start
# make test   the fast tests     make test-all   all tests, the fast ones first     make check   lint and types
# make bench  side-by-side benchmarks
# make adapt TEXT=DIR MODEL=DIR   a model made better on your own text: recipes/adapt/README.md
# make gpu    everything that only a GPU can tell, in nine minutes     make gpu ARGS=--dry-run   the same, tiny, on a CPU
# All of them make .venv first.
PYTHON ?= python3
VENV   := .venv
READY  := $(VENV)/ready

# The shape and the segments of docs/performance.md, small enough for two cores.
BENCH_MODEL = $(foreach key,model.num_layers=6 model.hidden_size=256 model.num_heads=4 model.intermediate_size=384 \
	model.vocab_size=32000 kernels.compile=true,--set $(key)) --lengths "" --segments 1024,64,200,387,512,150,777,180

# Two tests at a time, in the order of tests/scheduling.py.
PYTEST = $(VENV)/bin/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

.PHONY: demo adapt test test-all check bench gpu
demo: $(READY)
	@$(VENV)/bin/python recipes/quickstart/demo.py $(if $(filter-out 0,$(FRESH)),--fresh)

adapt: $(READY)
	@$(VENV)/bin/python recipes/adapt/adapt.py --model "$(MODEL)" --text $(TEXT) $(if $(GENERAL),--general $(GENERAL)) \
		$(if $(OUTPUT),--output $(OUTPUT)) $(ARGS)

test: $(READY)
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: $(READY)
	@$(PYTEST) $(ARGS)

check: $(READY)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

bench: $(READY)
	@$(VENV)/bin/python -m data_tools.bench $(ARGS)
	@if [ -z "$(ARGS)" ]; then for work in inference train; do \
		$(VENV)/bin/cmbert bench $$work --model recipes/quickstart/stage1.toml $(BENCH_MODEL) --against hf || exit; done; fi

gpu: $(READY)
	@$(VENV)/bin/python recipes/gpu/run.py $(ARGS)

# megatron-core comes without its dependencies: the tests only open shards with its reader.
$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cmbert needs Python 3.11 or newer; run make PYTHON=python3.11")'
	@echo "== setting up $(VENV) (once; about two minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[data,storage,eval,dev]'
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps megatron-core
	@touch $@
