# make demo: trains the fixed-point layer on real images beside its baseline, in minutes.
# make test: everything that CI checks.
# Both make their own virtual environment in .venv first.

VENV := .venv
PY := $(VENV)/bin/python
# A Python that is new enough, can make environments, and that the pinned jax has wheels for.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys, venv, ensurepip; assert (3, 11) <= sys.version_info[:2] <= (3, 13)' \
	2>/dev/null && echo $$p && break; done)

.PHONY: demo test lint types tables install clean

demo: $(VENV)/.run
	$(PY) launch.py --config=configs/fixed_point_layer.py:denoise --study \
		--config.study.seeds="(0,)" --workdir=runs/demo --results=runs/demo/results
	@echo "next:    $(PY) launch.py --config=configs/fixed_point_layer.py:maze --study"
	@echo "all:     $(PY) launch.py --list"

test: $(VENV)/.dev lint types
	$(PY) -m reprise.common.studies.tables --check
	$(PY) -m pytest -n 2

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# mypy finds packages by folder names; the checkout may have any.
types: $(VENV)/.dev
	mkdir -p .cache/typing && ln -sfn ../.. .cache/typing/reprise
	cd .cache/typing && MYPYPATH=. ../../$(VENV)/bin/mypy --config-file ../../pyproject.toml \
		-p reprise.common -p reprise.papers -p reprise.launch

tables: $(VENV)/.run
	$(PY) -m reprise.common.studies.tables

install: $(VENV)/.dev

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "needs Python 3.11 or 3.12 with venv" \
		"(Debian: apt install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python requirements.txt pyproject.toml setup.py
	$(PY) -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python requirements.txt pyproject.toml setup.py
	$(PY) -m pip install --quiet --disable-pip-version-check -e ".[dev,tpu]"
	@touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) .cache build *.egg-info
