# Two commands do everything: `make demo` and `make test`. Only Python 3.11+ is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread a process unless a recipe says otherwise: processes that spin against each other
# on two cores are a hundred times slower.
export OMP_WAIT_POLICY := PASSIVE
ARGS ?=
# Two test processes: much of what they do is waiting for programs that they started. Tests of a
# file share what they built, so a file stays in one process.
AT_ONCE ?= -n 2 --dist loadfile

.PHONY: demo demo-flower test test-all lint protos docs fuzz audit-deps clean

demo: $(VENV)/.installed
	$(BIN)/smalltalk demo $(ARGS)

# The same run over Flower, as processes on this machine: docs/carriers.md.
demo-flower: $(VENV)/.installed-flower
	$(BIN)/smalltalk demo-flower $(ARGS)

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest $(AT_ONCE) -m "not slow" $(ARGS)

test-all: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest $(AT_ONCE) $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The stubs are committed; a test checks that they are those of protos/.
protos: $(VENV)/.installed-dev
	$(BIN)/python -m grpc_tools.protoc -I smalltalk_fed/proto/v1=protos \
	  --python_out=. --pyi_out=. --grpc_python_out=. smalltalk_fed/proto/v1/smalltalk.proto

# Every decoder of foreign bytes for so many minutes each, coverage-guided; one after the other,
# or ARGS="--at-once 2". A few of them: ARGS="'score block' 'run.toml'".
MINUTES ?= 10
fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[fuzz]"
	PYTHONPATH=tests $(BIN)/python -m fuzz.run --minutes $(MINUTES) $(ARGS)

# Known vulnerabilities of what constraints.txt pins; says so where no source can be reached.
audit-deps: $(VENV)/.installed-dev
	$(BIN)/python .ci/audit_deps.py

# Pages that are made from the code; a test checks that they are current.
docs: $(VENV)/.installed-dev
	$(BIN)/python docs/build.py

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "smalltalk-fed needs Python 3.11 or newer; set PYTHON=/path/to/it")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all]"
	touch $@

$(VENV)/.installed-flower: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all,flower]"
	touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all,dev]"
	touch $@ $(VENV)/.installed $(VENV)/.installed-flower

clean:
	rm -rf $(VENV) demo demo-flower dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
