# make demo   the whole recipe, small, on real Chinese text     make demo FRESH=1   the same from the start
# make test   the test suite     make check   lint and types     make bench   side-by-side benchmarks
# All of them make .venv first.
PYTHON ?= python3
VENV   := .venv
READY  := $(VENV)/ready

.PHONY: demo test check bench
demo: $(READY)
	@$(VENV)/bin/python recipes/quickstart/demo.py $(if $(filter-out 0,$(FRESH)),--fresh)

test: $(READY)
	@$(VENV)/bin/python -m pytest $(ARGS)

check: $(READY)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

bench: $(READY)
	@$(VENV)/bin/python -m data_tools.bench $(ARGS)

# megatron-core comes without its dependencies: the tests only open shards with its reader.
$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cmbert needs Python 3.11 or newer; run make PYTHON=python3.11")'
	@echo "== setting up $(VENV) (once; about two minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[data,dev]'
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps megatron-core
	@touch $@
