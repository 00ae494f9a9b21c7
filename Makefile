# `make repro` and `make test` each work as the first command on a fresh clone.
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
INSTALLED := .venv/.installed

.PHONY: help install repro programs test check lint types benchmarks-fetch plan profile compare repro-check mlflow-sync ui clean exp-show exp-diff audit fsck
help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

# The stamp holds the exact pins that were installed: a second call installs nothing.
$(INSTALLED): pyproject.toml constraints.txt
	@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))" || { echo "make: Python 3.11 not found; install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(INSTALLED)  ## the virtual environment, under the exact pins of constraints.txt

repro: $(INSTALLED)  ## run the whole pipeline (what is cached is not run again)
	@dvc repro && python -m wronai.environment record

# What some tests need that is no Python package: never a reason to fail, they say why they are skipped.
programs:
	@missing="$$(command -v qemu-x86_64 >/dev/null || echo qemu-user) $$(command -v chromium >/dev/null || echo chromium)"; \
	if [ "$$(echo $$missing)" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  export DEBIAN_FRONTEND=noninteractive; \
	  (apt-get install -y --no-install-recommends $$missing || { apt-get update && apt-get install -y --no-install-recommends $$missing; }) >/dev/null 2>&1 \
	  || echo "make: $$missing could not be installed, so the tests that need them are skipped" >&2; fi

test: $(INSTALLED) programs  ## the tests, the end-to-end run of the real graph included
	@python -m pytest --numprocesses 2 --dist loadfile

lint: $(INSTALLED)
	@ruff check . && ruff format --check .

types: $(INSTALLED)
	@mypy

check: lint types test  ## ruff, mypy and pytest

profile: $(INSTALLED)  ## NAME=mistral-7b: write profiles/NAME.yaml over params.yaml and show the difference
	@python -m wronai.profiles $(NAME)

benchmarks-fetch: $(INSTALLED)  ## the data sets of lm_eval's own tasks in evaluate.tasks, for evaluation without a network (MIRROR=folder: from there)
	@python -m wronai.hub_benchmarks $(if $(MIRROR),--mirror $(MIRROR)) $(NAMES)

plan: $(INSTALLED)  ## what fine-tuning will hold in memory; MEMORY=8GB: on a GPU of that size (DEVICE=cpu: a machine)
	@python -m wronai.planner $(if $(MEMORY),--memory $(MEMORY)) $(if $(DEVICE),--device $(DEVICE))

mlflow-sync: $(INSTALLED)  ## bring the MLflow store up to date: what it missed, what it lost (ALL=1: every commit of git)
	@python -m wronai.tracking sync $(if $(ALL),--all-commits)

compare: $(INSTALLED)  ## A=experiment [B=another]: their tuned models on the same items, with intervals; B is the workspace by default
	@python -m wronai.experiments $(A) $(B)

repro-check: $(INSTALLED)  ## clone HEAD, run it from an empty cache, compare the bytes (DATA=1: stages without a model; THREADS=1; TOLERANCE=0.05; KEEP=1)
	@python -m wronai.reproducibility $(if $(DATA),--stages data) $(if $(THREADS),--threads $(THREADS)) $(if $(TOLERANCE),--tolerance $(TOLERANCE)) $(if $(KEEP),--keep)

ui: $(INSTALLED)  ## compare runs in the MLflow UI (PORT=5000)
	@python -m wronai.tracking ui $(if $(PORT),--port $(PORT))

# Of a thousand numbers those that tell one model from another; beside them, every parameter that differs.
HEADLINE := validation_loss|bits_per_byte[.](answers|documents|retention)[.]tuned|mean[.]tuned|verdict
SECTIONS := data|clean|model|tokenize|finetune|merge|evaluate|seed|numerics
exp-show: $(INSTALLED)  ## the experiments of this commit (N=3: of three): changed parameters, and the metrics to judge by
	@dvc exp show --no-pager --only-changed $(if $(N),--num $(N)) --drop '^(?!Experiment|($(SECTIONS))([.]|$$))' --keep '($(HEADLINE))$$'

exp-diff: $(INSTALLED)  ## A=experiment [B=another]: the parameters that differ, and the metrics to judge by; B is the workspace by default
	@dvc params diff $(A) $(B)
	@dvc metrics diff $(A) $(B) | grep -E '^Path|^[^ ]+ +($(HEADLINE)) '

audit: $(INSTALLED)  ## known vulnerabilities of what is pinned (needs a network), and the licences of what is installed
	@python -m wronai.audit

fsck: $(INSTALLED)  ## find what is damaged in DVC's cache and in the outs, and put it aside to be made again
	@python -m wronai.integrity

clean:  ## remove outs and environment; the DVC cache and the MLflow store stay
	rm -rf .venv data/raw data/benchmarks data/clean data/tokens data/scores data/downloads models/base models/tokenizer models/adapter models/merged report .checkpoints
