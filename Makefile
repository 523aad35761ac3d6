# Everything happens in .venv, which is made from the first Python >= 3.11 that is found (or the one in PYTHON=...),
# from the pinned and hashed requirements/. No rule here needs anything else, but for `make test`: some tests need a
# server, which .ci/services gets where it can. Paths are relative, so that a checkout may lie in a directory whose name
# has spaces.

.DEFAULT_GOAL := help
.PHONY: help demo test lint services bench pins bench-pins clean

PYTHONS := $(if $(PYTHON),"$(PYTHON)",python3 python3.14 python3.13 python3.12 python3.11)
PIP := .venv/bin/python -m pip --quiet --disable-pip-version-check --no-input
COMPILE := .venv-pins/bin/python -m piptools compile --quiet --strip-extras --allow-unsafe --generate-hashes \
	--no-header --no-emit-index-url --no-emit-trusted-host --no-emit-find-links

help: ## Say what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | while IFS='|' read -r target text; do \
		printf '%-18s %s\n' "$$target" "$$text"; done

demo: .venv/run.stamp ## Send a day's events through the shipped rulebook and show what became of them
	@.venv/bin/dispatcher demo $(ARGS)

test: .venv/test.stamp services ## Run every check and every test; ARGS="-k retries" goes to pytest
	@lint=passed; $(MAKE) --no-print-directory lint || lint=failed; \
	.venv/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS) || exit 1; \
	[ $$lint = passed ] || { echo 'The tests passed, but a check before them did not: `make lint` shows it.' >&2; exit 1; }

lint: .venv/test.stamp ## Run ruff, mypy and import-linter
	@failed=''; \
	.venv/bin/ruff check --quiet . || failed="$$failed 'ruff check'"; \
	.venv/bin/ruff format --quiet --diff . || failed="$$failed 'ruff format'"; \
	.venv/bin/mypy --no-error-summary || failed="$$failed mypy"; \
	report=$$(.venv/bin/lint-imports --no-logo 2>&1) || { echo "$$report"; failed="$$failed lint-imports"; }; \
	if [ -n "$$failed" ]; then echo "Failed:$$failed" >&2; exit 1; fi; \
	echo 'ruff, mypy and import-linter have no complaint.'

# What cannot be had is no failure here: the tests say what they miss, and in CI that is one.
services: ## Install RabbitMQ and PostgreSQL for the tests, if this is Debian and you are root
	@.ci/services || true

bench: .venv/test.stamp services ## Measure ours and its peers side by side; ARGS="--quick --only ours-sqlite,pika_loop"
	@.venv/bin/python -m bench $(ARGS)

pins: .venv-pins/bin/pip-compile ## Pin the newest versions that pyproject.toml allows
	@$(COMPILE) --upgrade --only-build-deps --build-deps-for wheel --build-deps-for editable -o requirements/build.txt pyproject.toml
	@$(COMPILE) --upgrade -o requirements/run.txt pyproject.toml
	@$(COMPILE) --upgrade --extra test --extra lint -c requirements/run.txt -o requirements/test.txt pyproject.toml

# Apart from `pins`, for these are no dependencies of ours: what was measured is measured again with the same versions.
bench-pins: .venv-pins/bin/pip-compile ## Pin the newest versions of the benchmark's peers and plots
	@for peer in bench/peers/*/; do $(COMPILE) --upgrade -o "$${peer}requirements.txt" "$${peer}requirements.in" || exit 1; done
	@$(COMPILE) --upgrade -o requirements/plots.txt requirements/plots.in

clean: ## Take away everything that was made here
	@rm -rf .venv .venv-pins .venv-bench build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@for python in $(PYTHONS); do \
		if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Making .venv with $$("$$python" --version)"; \
			exec "$$python" -m venv --clear .venv; \
		fi; \
	done; \
	echo 'There is no Python >= 3.11 with its venv module here. Looked for:' $(PYTHONS). >&2; \
	echo 'Install one (Debian: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3.13' >&2; \
	exit 1

# The demo needs less than the tests, so there are two stamps, each made anew when what it was made from changes.
.venv/run.stamp: pyproject.toml requirements/build.txt requirements/run.txt | .venv/bin/python
	@echo 'Installing what the dispatcher needs'
	@$(PIP) install --require-hashes -r requirements/build.txt -r requirements/run.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/test.stamp: .venv/run.stamp requirements/test.txt
	@echo 'Installing what the tests need'
	@$(PIP) install --require-hashes -r requirements/test.txt
	@problems=$$(.venv/bin/python -m pip check) || { echo "$$problems"; exit 1; }
	@touch $@

.venv-pins/bin/pip-compile: | .venv/bin/python
	@.venv/bin/python -m venv --clear .venv-pins
	@.venv-pins/bin/python -m pip --quiet --disable-pip-version-check install pip-tools
