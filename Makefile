# On a machine with Python 3.11 or newer and make: `make demo`, `make test`, `make lint`, `make bench`.
# Each makes an environment in VENV first and installs there, once, what it needs.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2

python := $(VENV)/bin/python
install := $(python) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint bench clean

demo: $(VENV)/.demo
	$(python) -m zsp demo

# One torch thread in each of the JOBS processes, so that they do not compete for the cores.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(python) -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(python) -m ruff check
	$(python) -m mypy

bench: $(VENV)/.bench
	$(python) -m benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info demo_output tutorial_output .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Torch comes first and alone: it is most of the download, and stays when another pin changes.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("zsp needs Python 3.11 or newer, but $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(install) torch==2.13.0 setuptools
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml constraints.txt
	$(install) --no-build-isolation -e '.[plot]'
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml constraints.txt
	$(install) --no-build-isolation -e '.[test,plot]'
	@touch $@

$(VENV)/.bench: $(VENV)/.demo benchmarks/requirements.txt
	$(install) -r benchmarks/requirements.txt
	@touch $@
