# Two commands set everything up from nothing: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test chaos lint clean install

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

quickstart: install  ## GRPO on the built-in tiny model, on this machine's CPU
	$(BIN)/unmask train recipes/quickstart.yaml

test: install  ## every test that needs neither GPU nor network
	$(BIN)/python -m tests.rooms

KILLS ?= 200
chaos: install  ## kills processes of runs at random, and compares with a run that nothing happened to
	$(BIN)/python -m tests.chaos.campaign --kills $(KILLS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs mlruns mlflow.db
