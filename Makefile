# `make demo` and `make test` need Python 3.11 or newer with pip, and set up everything else in .venv by themselves.
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
BIN := .venv/bin
# One stamp for each Python version, so `make PYTHON=python3.12 test` makes .venv again after another version's.
READY := .venv/.ready-$(VERSION)
SHELL_FILES := .ci/run .ci/setup $(wildcard launch/*.sh launch/*.sbatch)
LOCK := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	--extra tensorboard --custom-compile-command "make lock"

# Kills, stops, damage, hostile input, full disks, lost processes, other topologies.
CHAOS := $(addprefix tests/,test_lost_peers.py test_multiprocess_faults.py test_elastic.py test_hostile.py test_fuzz.py \
	$(addprefix training/,test_kill.py test_checkpoint_storms.py test_stopping.py test_signals_by_phase.py \
	test_silent_corruption.py test_spikes.py test_verify_run.py test_watchdog.py test_runs_in_gcs.py))

.PHONY: help demo test test-all test-chaos test-soak lint audit bench docs lock clean

help:
	@echo "make demo      pre-train, fine-tune and score a small model on this machine's CPU; ends with a report"
	@echo "make test      the fast tests             make test-all  all tests"
	@echo "make test-chaos the fast tests of kills, damage and hostile input      make test-soak  with the slow storms"
	@echo "make lint      ruff, mypy, shellcheck     make bench     time the training step"
	@echo "make audit     known vulnerabilities of the locked packages (needs the network)"
	@echo "make docs      the documentation as a website in site/"
	@echo "make lock      requirements.lock and that of TPU pods from pyproject.toml (UPGRADE=--upgrade: newest versions)"
	@echo "make clean     remove .venv, .tools and caches"
	@echo "Options: PYTHON=python3.12 (which Python), ARGS='-k name' (more arguments for pytest, the demo or the benchmark)"

$(READY): requirements.lock pyproject.toml
	@.ci/setup $(PYTHON)
	@rm -f .venv/.ready-*
	@touch $@

demo: $(READY)
	$(BIN)/python -m bertjax.demo $(ARGS)

# Compiling for a CPU takes most of the time of the fast tests; the others have LLVM's usual optimizations.
test: export XLA_FLAGS += --xla_backend_optimization_level=0
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

test-all: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-chaos: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(CHAOS) $(ARGS)

test-soak: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(CHAOS) $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck $(SHELL_FILES)
	$(BIN)/yamllint .

audit:
	$(PYTHON) -m venv .tools/audit
	.tools/audit/bin/pip install --quiet --disable-pip-version-check pip-audit==2.9.0
	.tools/audit/bin/pip-audit --disable-pip --require-hashes -r requirements.lock -r launch/requirements-tpu.lock

bench: $(READY)
	$(BIN)/python benchmarks/step.py $(ARGS)

docs: $(READY)
	@$(BIN)/python -c 'import material, mkdocstrings' 2>/dev/null || $(BIN)/uv pip install --quiet --python $(BIN)/python --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lock: $(READY)
	$(BIN)/uv pip compile --quiet $(LOCK) --group dev $(UPGRADE) pyproject.toml --output-file requirements.lock
	$(BIN)/uv pip compile --quiet $(LOCK) --group build --extra tpu --extra gcs --constraint requirements.lock $(UPGRADE) \
		pyproject.toml --output-file launch/requirements-tpu.lock

clean:
	rm -rf .venv .tools build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
