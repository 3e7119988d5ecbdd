# Needs make, bash and Python 3.11 or newer; everything else comes from the locks.
# A stamp file stands for each finished installation, so a repeated run does no work.

SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help run test test-fast test-e2e lint format lock crds openapi image sbom chart cluster-up \
  cluster-down clean

UV := .venv-uv/bin/uv
BIN := .venv/bin
TOOLS := .venv-uv/.installed
INSPECT := .venv-tools/.installed
IMAGE ?= tollhouse:dev
RUN := .venv/.run-installed
DEV := .venv/.dev-installed
ARGS ?=

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

run: $(RUN) ## serve examples/quickstart (ARGS="--port 8081" adds flags)
	@cat examples/quickstart/try.txt
	@exec $(BIN)/tollhouse serve examples/quickstart $(ARGS)

# One run tells of every failure, and the scan runs after failures too: a failing test is the
# likeliest to print what it should not.
# What earlier runs left behind is removed first, so that the scan speaks about this run.
test: $(DEV) ## lint, every test, and the search of all output for planted secrets
	@rm -rf build/logs build/planted && mkdir -p build
	@$(BIN)/python tests/cluster/cluster.py build $$([ "$$(id -u)" != 0 ] || echo --node) \
	  || [ $$? = 3 ] # 3: this machine lacks something
	@set -o pipefail; status=0; \
	( $(MAKE) --no-print-directory lint || failed=1; \
	  $(BIN)/python -m pytest $(ARGS) || failed=1; \
	  exit $${failed:-0} ) 2>&1 | tee build/test-output.log || status=1; \
	$(BIN)/python tests/leaks.py || status=1; \
	exit $$status

test-fast: $(DEV) ## unit and golden tests, under a minute
	@$(BIN)/python -m pytest tests/unit tests/golden $(ARGS)

test-e2e: $(DEV) ## the image and the chart in a cluster with pods: needs root, or kind and Docker
	@$(BIN)/python -m pytest tests/e2e $(ARGS)

lint: $(DEV) $(INSPECT) ## ruff, mypy, the import contracts, and hadolint on the Dockerfile
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	.venv-tools/bin/hadolint Dockerfile

format: $(DEV) ## let ruff format and fix what it can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --no-header $(ARGS)

lock: $(TOOLS) ## refresh the locks (ARGS=--upgrade raises every version)
	$(COMPILE) pyproject.toml --extra operator -o requirements.lock
	$(COMPILE) pyproject.toml --extra dev -c requirements.lock -o requirements-dev.lock
	$(COMPILE) --group pyproject.toml:build -o requirements-build.lock
	$(COMPILE) --group pyproject.toml:tools -o requirements-tools.lock

crds: $(DEV) ## write crds/ from the resource models
	@$(BIN)/tollhouse crds $(or $(ARGS),crds)
	@rm -f charts/tollhouse/files/crds/*.yaml && cp crds/*.yaml charts/tollhouse/files/crds/

image: $(BIN)/python ## build the image IMAGE (Docker, else buildah without any registry; BASE= names a base)
	@BASE="$(BASE)" $(BIN)/python tests/cluster/cluster.py image $(IMAGE)

sbom: $(INSPECT) ## write build/sbom.cdx.json: what requirements.lock puts into the image
	@mkdir -p build
	@PYTHONWARNINGS=ignore .venv-tools/bin/cyclonedx-py requirements --pyproject pyproject.toml --mc-type application \
	  --output-reproducible --of JSON -o build/sbom.cdx.json requirements.lock
	@echo "build/sbom.cdx.json"

chart: crds ## write the chart's generated parts, and pack it into build/
	@$(BIN)/python charts/values_table.py
	@$(BIN)/python tests/cluster/cluster.py helm package charts/tollhouse --destination build

openapi: $(DEV) ## write docs/openapi.json from the types that check requests
	@$(BIN)/tollhouse openapi docs/openapi.json

cluster-up: $(DEV) ## start a Kubernetes API server on this machine
	@$(BIN)/python tests/cluster/cluster.py up $(ARGS)

cluster-down: ## stop it
	@$(BIN)/python tests/cluster/cluster.py down

clean: ## remove environments, caches and build output
	rm -rf .venv .venv-uv .venv-tools build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find gateway operator tests -name __pycache__ -prune -exec rm -rf {} +

PYTHONS := $(or $(PYTHON),python3 python3.11 python3.12 python3.13 python3.14 python)

# pip only brings uv: its own resolver takes minutes for what uv installs in seconds.
$(TOOLS): requirements-build.lock
	@python=; \
	for candidate in $(PYTHONS); do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    python=$$candidate; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Tollhouse needs Python 3.11 or newer; none of these is: $(PYTHONS)" >&2; \
	  echo "Install it, or say where it is: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	echo "Making an environment with $$("$$python" --version)"; \
	"$$python" -m venv --clear .venv-uv || { \
	  echo "$$python cannot make environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@.venv-uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	  --only-binary :all: -r requirements-build.lock
	@touch $@

INSTALL_PROJECT := $(UV) pip install --quiet --python $(BIN)/python --no-deps \
  --build-constraints requirements-build.lock --editable .

$(BIN)/python: $(TOOLS)
	@$(UV) venv --quiet --allow-existing --python .venv-uv/bin/python .venv
	@touch $@

$(RUN): requirements.lock pyproject.toml $(BIN)/python
	@echo "Installing from requirements.lock"
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	@$(INSTALL_PROJECT)
	@touch $@

$(INSPECT): requirements-tools.lock $(TOOLS)
	@$(UV) venv --quiet --allow-existing --python .venv-uv/bin/python .venv-tools
	@$(UV) pip sync --quiet --python .venv-tools/bin/python --require-hashes requirements-tools.lock
	@touch $@

# The development lock holds the runtime lock's versions and more: it stands for both.
$(DEV): requirements-dev.lock requirements.lock pyproject.toml $(BIN)/python
	@echo "Installing from requirements-dev.lock"
	@$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements-dev.lock
	@$(INSTALL_PROJECT)
	@touch $(RUN) $@
