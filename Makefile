# Each target does its own set-up: a virtual environment in .venv with outrider (editable) and its development tools.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
CLIENTS := sdks llama-index lm-eval aiperf guidellm xgrammar
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test test-full test-clients check format proto wheel wheel-demo docs clean

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "outrider needs Python 3.11 or newer; set PYTHON=" >&2; exit 1; }
	@echo "installing outrider and its tools into .venv: once, and some minutes (torch is large)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(STAMP)  ## a two-stage cluster on this machine: speculation off against auto
	$(BIN)/outrider demo

test: $(STAMP)  ## the fast tests; says what it skips and why
	$(BIN)/python -m pytest -m "not full" --hypothesis-profile=repeatable --durations=20

test-full: $(STAMP)  ## everything, the long grids included
	$(BIN)/python -m pytest

# Each client has an environment of its own, since their requirements conflict. It sees the packages of .venv last.
.venv-clients/%/.installed: tests/clients/requirements/%.txt $(STAMP)
	@echo "installing $* into .venv-clients/$*"
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@purelib='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	  $(BIN)/python -c "$$purelib" > "$$($(@D)/bin/python -c "$$purelib")/outrider.pth"
	$(@D)/bin/python -m pip install --quiet --requirement $<
	touch $@

.venv-clients/ai-sdk/.installed: tests/clients/ai-sdk/package.json
	mkdir -p $(@D) && cp $< $(@D)
	npm install --silent --no-audit --no-fund --prefix $(@D)
	touch $@

test-clients: $(STAMP) $(CLIENTS:%=.venv-clients/%/.installed)  ## other projects' clients and benchmarks, installed from their packages
	if command -v npm > /dev/null; then $(MAKE) .venv-clients/ai-sdk/.installed; fi
	PYTHONPATH=src .venv-clients/sdks/bin/python -m pytest tests/gateway/http/test_clients.py
	$(BIN)/python -m pytest tests/clients

check: $(STAMP)  ## static checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/buf lint

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(STAMP)  ## regenerate the protobuf modules
	$(BIN)/python -m grpc_tools.protoc -Ioutrider/proto=proto --python_out=src --pyi_out=src --grpc_python_out=src proto/*.proto

docs: $(STAMP)  ## build the documentation's site into build/site
	$(BIN)/mkdocs build --strict

wheel: $(STAMP)  ## build the wheel with its kernels into dist/, with the tag of the oldest systems that it runs on
	$(BIN)/python -m build --wheel --outdir build/wheel .
	PATH="$(BIN):$$PATH" $(BIN)/python -m auditwheel repair --wheel-dir dist build/wheel/*.whl

wheel-demo: $(STAMP)  ## build the wheel, install it beside the installed dependencies, run the demo from an empty directory
	.ci/wheel-demo $(BIN)/python

clean:
	rm -rf .venv build dist *.egg-info src/*.egg-info
