# make install: .venv with the halfmap command; make demo: the whole story on an embedded example; make test: every quick check
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO ?= demo

.PHONY: install demo docs browser test test-all check benchmarks device-check clean

install: $(INSTALLED)

$(BIN)/python:
	scripts/make_venv.sh $(PYTHON) .venv

# the package is installed editable, so only these two files call for another install
$(INSTALLED): requirements.lock pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: install
	$(BIN)/halfmap demo --out $(DEMO) --overwrite

# the documentation site in build/docs, the lecture's gallery run; no network, no warnings
docs: install
	$(BIN)/python -m sphinx -b html -q -W --keep-going docs build/docs

check: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# the pages are tested in Debian's chromium; where it cannot be installed those tests skip
browser:
	-scripts/install_browser.sh

# one process a core, of one thread each; a file's tests share their fixtures, and one process
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

test: check browser
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: check browser
	$(PYTEST) $(PYTEST_ARGS)

benchmarks: install
	$(BIN)/python benchmarks/run.py

# tests and whole jobs on the GPU, under 8 minutes
device-check: install
	$(BIN)/python benchmarks/device_check.py

clean:
	rm -rf .venv build dist docs/_built docs/sg_execution_times.rst src/*.egg-info .mypy_cache .ruff_cache .pytest_cache demo
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
