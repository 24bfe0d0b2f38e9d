# Two commands do all the set-up: make demo, make test. Everything goes into .venv and runs/.
PYTHON ?= python3
VENV ?= .venv
# PyTorch only serves as the reference to compare with.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
# Large pages for the heap of glibc: page faults cost a quarter of a training step on CPU without them.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo test test-slow test-beam peers weights lint bench bench-quick clean help

help:
	@echo "make demo   train, look at and export a small BERT (about ten minutes on two cores, set-up included)"
	@echo "make test   the tests (a quarter of an hour on two cores, set-up included); make test-slow runs those that take long"
	@echo "make test-beam  that Apache Beam prepares the same store, in an environment of its own"
	@echo "make weights  fetches the real checkpoints (300 MB) that some tests and benchmarks/checkpoints.py read"
	@echo "make lint   ruff"
	@echo "make bench  training step, sentence embeddings and classes against PyTorch and ONNX Runtime, and docs/results/performance.md"
	@echo "make peers  environments for two more contestants of make bench: the last Flax BERT of transformers, keras-hub"
	@echo "make bench-quick  two of its ratios in two minutes, beside the committed ones"

$(VENV)/.core: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 to 3.13 is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet -e '.[torch]'
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/pip install --quiet -e '.[torch,dev]'
	touch $@

demo: $(VENV)/.core
	$(BIN)/bert-jax demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow'

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow

# Apache Beam wants an older protobuf and sentencepiece than the rest, so it has an environment of its own.
$(VENV)-beam/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)-beam
	$(VENV)-beam/bin/pip install --quiet --upgrade pip
	$(VENV)-beam/bin/pip install --quiet -e '.[beam]' 'pytest>=8' 'hypothesis>=6.100' build
	touch $@

test-beam: $(VENV)-beam/.done
	$(VENV)-beam/bin/python -m pytest -q tests/data/test_beam.py

# Peers of benchmarks/step.py that do not live with the present transformers, or with little else.
$(VENV)-flax/.done:
	$(PYTHON) -m venv $(VENV)-flax
	$(VENV)-flax/bin/pip install --quiet 'transformers==4.57.*' 'jax==0.6.*' 'flax==0.10.*' 'optax==0.2.*'
	touch $@

$(VENV)-keras/.done:
	$(PYTHON) -m venv $(VENV)-keras
	$(VENV)-keras/bin/pip install --quiet 'keras==3.15.*' 'keras-hub==0.32.*' 'jax==0.10.*'
	touch $@

peers: $(VENV)-flax/.done $(VENV)-keras/.done

weights: $(VENV)/.dev
	$(BIN)/python benchmarks/weights.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/weights.py all-MiniLM-L6-v2
	$(BIN)/python benchmarks/step.py --out benchmarks/results/step_cpu.json
	$(BIN)/python benchmarks/encode.py --out benchmarks/results/encode_cpu.json
	$(BIN)/python benchmarks/predict.py --out benchmarks/results/predict_cpu.json
	$(BIN)/python benchmarks/performance.py

bench-quick: $(VENV)/.dev
	$(BIN)/python benchmarks/quick.py

clean:
	rm -rf $(VENV) $(VENV)-beam runs .cache
