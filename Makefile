# make demo   install what the demo needs into .venv, then train a patch and show what it does
# make test   install the development tools as well, then ruff, pyright and pytest
# Only Python 3.10+ and git are needed. demo.bat and test.bat do the same on Windows.

PYTHON ?= python3
OUT ?= demo

# What a host of today ships at its oldest; `safegen doctor` warns below these.
OLDEST = numpy==1.26.2 Pillow==9.5.0 safetensors==0.4.2 torch==2.13.0

.PHONY: demo test lint oldest clean

demo: .venv/installed-demo
	.venv/bin/safegen demo --out $(OUT)

test: lint
	.venv/bin/python -m pytest

lint: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright --pythonpath .venv/bin/python

oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest --ignore tests/train --ignore tests/evaluate --ignore tests/lab

clean:
	rm -rf .venv .venv-oldest build demo safegen.egg-info .pytest_cache .ruff_cache .hypothesis

.venv/installed-demo: pyproject.toml constraints.txt
	@$(call create,.venv)
	.venv/bin/python -m pip install -c constraints.txt -e ".[train]"
	@touch $@

.venv/installed-test: pyproject.toml constraints.txt
	@$(call create,.venv)
	.venv/bin/python -m pip install -c constraints.txt -e ".[train,detect,dev]"
	.venv/bin/python -m pip install --no-deps nudenet==3.4.2
	@touch $@

# Wheels of these releases exist up to Python 3.11.
.venv-oldest/installed: pyproject.toml Makefile
	@$(call create,.venv-oldest)
	.venv-oldest/bin/python -m pip install $(OLDEST) pytest pytest-randomly hypothesis -e .
	@touch $@

define create
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
    echo "SafeGen needs Python 3.10 or newer as '$(PYTHON)'. Choose another: make PYTHON=python3.12 ..." >&2; exit 1; }; \
$(PYTHON) -m venv $(1) || { \
    echo "Python could not create $(1). On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
echo "Installing into $(1) (once; torch makes this the longest step) ..."
endef
