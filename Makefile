# make demo   set up, then compile the MNIST network for a Raspberry Pi 4 and prove it right on an emulated one
# make test   set up, then lint, type-check the built wheel and run the tests
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
JOBS   ?= 2

.PHONY: demo test test-slow lint types clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo-installed
	$(BIN)/python examples/mnist/demo.py

test: lint types
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow"

# The tests that take minutes each.
test-slow: $(VENV)/.test-installed
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m slow

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy reads the wheel as users get it, installed in a folder of its own.
types: $(VENV)/.test-installed
	rm -rf build/lib build/wheel build/installed
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(BIN)/python -m pip install --quiet --no-deps --target build/installed build/wheel/*.whl
	cd build/installed && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml -p xnorc

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo-installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[emulate]'
	$(BIN)/xnorc targets --prepare rpi4 host
	touch $@

$(VENV)/.test-installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[torch,emulate,fpga,dev]'
	$(BIN)/xnorc targets --prepare rpi4 rpi2 host
	touch $@ $(VENV)/.demo-installed

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
