# The interpreter that .venv is made with.
PYTHON ?= python3
# How pytest runs, with one more process than two cores, since many tests wait for others; and which tests, or other
# flags of it.
PYTEST = $(BIN)/python -m pytest -n 3 --dist loadfile
PYTEST_ARGS ?=
DEMO_ARGS ?= --do_train --do_eval --optim lpsgdm \
	--output_dir runs/digits --overwrite_output_dir

BIN := .venv/bin

# make adds a line of its own when a recipe fails, but not after $(error): so a failed set-up is told in one line.
# Under `make -n` nothing is set up.
dry_run = $(findstring n,$(firstword -$(MAKEFLAGS)))
problem = $(if $(dry_run),,$(shell BASE_PYTHON='$(PYTHON)' ASKED_FOR='$(filter-out file,$(origin PYTHON))' sh .ci/setup))
fail_if = $(if $(strip $(1)),$(error $(strip $(1))))

.PHONY: help demo study test test-all test-rest test-cpus check docs dist test-dist format setup clean

help:
	@echo "make demo     train a small image classifier with LPSGDM on scikit-learn's digits (flags: DEMO_ARGS)"
	@echo "make study    compare LPSGD and LPSGDM with AdamW, Lion and SGD on the digits, in some 5 minutes"
	@echo "make test     what make check does, then every behaviour: 4 minutes on two cores (flags for pytest: PYTEST_ARGS)"
	@echo "make test-all the same with every row of every test: 6 minutes"
	@echo "make test-rest  what make test leaves out of make test-all"
	@echo "make test-cpus  every test as on other processors, with one thread and with four: under an hour"
	@echo "make check    lint, format, types, the direction of imports and the workflows only"
	@echo "make docs     build the pages of docs/ into site/; a broken link, anchor or reference fails"
	@echo "make dist     build and check the sdist and the wheel in dist/"
	@echo "make test-dist  the tests against that wheel, in a fresh environment (SESSION=oldest-3.10: see nox --list)"
	@echo "make format   put the code into the format that check wants"
	@echo "make setup    make .venv with the pinned versions of constraints.txt; the others do it when needed"
	@echo "make clean    remove .venv and what the tools left behind; trained models in runs/ stay"
	@echo "PYTHON=python3.12 names the interpreter that .venv is made with; it must be 3.10 or newer"

demo: setup
	@echo "demo: image classification with LPSGDM"
	@$(BIN)/python examples/image_classification/run_image_classification.py $(DEMO_ARGS)

# The digits of the study: no data to load, and five minutes on two cores.
study: setup
	@echo "study: AdamW, Lion, SGD, LPSGD and LPSGDM on the digits, into runs/study"
	@$(BIN)/python examples/benchmarks/run_study.py examples/benchmarks/studies/optimizers.yaml --output_dir runs/study \
		--only digits_vit digits_vit_torch_init digits_resnet
	@$(BIN)/python examples/benchmarks/study_report.py runs/study

# What is marked `exhaustive` are rows of tests that have other rows of the same behaviour.
test: check
	@echo "test: pytest, without what is marked exhaustive"
	@$(PYTEST) -m "not exhaustive" $(PYTEST_ARGS)

test-all: check
	@echo "test-all: pytest"
	@$(PYTEST) $(PYTEST_ARGS)

# What `make test` leaves out of `make test-all`.
test-rest: setup
	@echo "test-rest: pytest, what is marked exhaustive"
	@$(PYTEST) -m exhaustive $(PYTEST_ARGS)

# As on other processors, so far as one processor can be told to be another. CPUS can name one or some of them.
CPUS ?= MKL_CBWR=COMPATIBLE MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 ONEDNN_MAX_CPU_ISA=SSE41 \
	ATEN_CPU_CAPABILITY=avx2 ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=1 OMP_NUM_THREADS=4
test-cpus: setup
	@for setting in $(CPUS); do \
		echo "test-cpus: $$setting pytest" && env $$setting $(PYTEST) $(PYTEST_ARGS) || exit; \
	done

check: setup
	@echo "check: ruff check, ruff format --check, mypy, lint-imports, check-jsonschema, zizmor"
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/lint-imports --no-logo --no-cache
	@$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	@$(BIN)/zizmor --quiet --offline --persona pedantic .github

# Not with --quiet: mkdocs would count no warnings then, and nothing would fail.
docs: setup
	@echo "docs: mkdocs build --strict"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "pages: site/index.html"

# A wheel tagged linux_* has the compiled step, and an index does not take it: auditwheel finds the oldest Linux that
# the wheel runs on, and puts that into its tag.
dist: setup
	@echo "dist: build, auditwheel, twine check, check-wheel-contents"
	@rm -rf build dist
	@$(BIN)/python -m build
	@if ls dist/*-linux_*.whl >/dev/null 2>&1; then \
		PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel repair --wheel-dir dist dist/*-linux_*.whl && \
		rm dist/*-linux_*.whl; \
	fi
	@$(BIN)/python -m twine check --strict dist/*
	@$(BIN)/check-wheel-contents dist/*.whl

SESSION ?= pinned-$(shell $(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
test-dist: dist
	@echo 'test-dist: nox --session $(SESSION)'
	@$(BIN)/python -m nox --session '$(SESSION)' -- $(PYTEST_ARGS)

format: setup
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .

setup:
	@$(call fail_if,$(problem)):

clean:
	@echo "clean: removing .venv, caches and build output"
	@rm -rf hf_lpsgd/optim/kernels/*.so .venv .nox build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
