# Everything here needs Python 3.10 or newer with venv, and make. A C compiler makes geventws fast, and is not needed.

PYTHON ?= python3
VENV ?= .venv
BIND ?= 127.0.0.1:8000

BIN := $(VENV)/bin
SETUP := pyproject.toml setup.py
# What is compiled, by setup.py's own list, and the declarations it is compiled with.
CORE := $(wildcard $(shell grep -o 'geventws/[a-z_/]*\.pyx\{0,1\}' setup.py 2>/dev/null)) $(shell find geventws -name '*.pxd')

.PHONY: help serve test build lint docs bench faults autobahn clean
help:
	@echo "make serve     run the chat example at http://$(BIND)"
	@echo "make test      run the tests"
	@echo "make build     compile the core in place"
	@echo "make lint      ruff and mypy"
	@echo "make docs      the documentation, in build/docs"
	@echo "make bench     the benchmarks"
	@echo "make faults    faults and abuse against running servers"
	@echo "make autobahn  the Autobahn testsuite (needs a Python 2.7)"
	@echo "make clean     remove what was built, and $(VENV)"

# The command line wins over the configuration file: make serve BIND=0.0.0.0:8080
serve: $(VENV)/examples.stamp
	$(BIN)/gunicorn -c gunicorn.conf.py --bind $(BIND) examples.chat:app

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest $(ARGS)

build: $(VENV)/all.stamp
	$(BIN)/python -m geventws --version

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy --strict examples/*.py tests/typed_app.py

# A warning is an error: a link that leads nowhere, a name that is not there.
docs: $(VENV)/docs.stamp
	$(BIN)/python docs/house.py
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs
	@echo "the documentation is in build/docs/index.html"

bench: $(VENV)/all.stamp
	$(BIN)/python benchmarks/run.py $(ARGS)

faults: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m faults tests/faults $(ARGS)

autobahn: $(VENV)/all.stamp
	$(BIN)/python tests/autobahn/run.py --cache $(VENV)/autobahn $(ARGS)

clean:
	rm -rf $(VENV) build dist reports *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find geventws \( -name '*.so' -o -name '*.c' \) -delete
	find . -name __pycache__ -prune -exec rm -rf {} +

# A stamp tells which extras are installed, and is older than what the install was made from if that changed since.
$(VENV)/all.stamp: EXTRAS = all
$(VENV)/examples.stamp: EXTRAS = examples
$(VENV)/test.stamp: EXTRAS = all,test
$(VENV)/dev.stamp: EXTRAS = all,test,dev
$(VENV)/docs.stamp: EXTRAS = docs
$(VENV)/%.stamp: $(SETUP) $(CORE) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "geventws needs Python 3.10 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
