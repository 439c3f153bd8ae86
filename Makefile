# Every target sets up .venv first, when it is missing or the lock changed, and nothing else is needed than Python 3.11.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
LOCKED := $(VENV)/.locked-$(shell cat requirements.lock pyproject.toml | sha256sum | cut -c1-16)
QUICK := demo/runs/cxr_memory/studies/quick
BEST := demo/runs/cxr_memory/quick_best

export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1

# `make push IMAGE=registry.example/lab/voxray:1`; TARGET is cuda or cpu.
IMAGE ?= voxray
TARGET ?= cuda

.PHONY: help setup demo test chaos bench peers docs lint image push
help:
	@echo "make demo | test | chaos | bench | peers | docs | lint | setup | image | push IMAGE=… | environment.yaml"

setup: $(LOCKED)

$(LOCKED):
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# The main job on synthetic radiographs in the real layout; everything it makes is in demo/, which it makes anew.
demo: setup
	rm -rf demo
	$(BIN)/voxray data synth cxr_memory demo/raw --size tiny
	$(BIN)/voxray data prepare cxr_memory demo/raw demo/dataset
	$(BIN)/voxray tune search_spaces/cxr_memory/quick.yaml data.path=demo/dataset storage.path=demo/runs
	$(BIN)/voxray train $(QUICK)/best.yaml run.name=quick_best scale.num_workers=2 training.epochs=8
	$(BIN)/voxray evaluate $(BEST) --floor
	$(BIN)/voxray report $(QUICK) $(BEST) --out demo/report.html

test: setup
	$(BIN)/pytest

chaos: setup
	$(BIN)/pytest -m chaos

bench: setup
	for file in benchmarks/*.py; do $(BIN)/python $$file --quick || exit 1; done

# The libraries that benchmarks/ingest.py and benchmarks/ridge.py measure beside ours.
peers: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .[bench]
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps mosaicml-streaming==0.13.0

docs: setup
	$(BIN)/sphinx-build -W -q -b html docs docs/_build/html
	@echo docs/_build/html/index.html

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

image:
	docker build --target $(TARGET) --tag $(IMAGE) .

push: image
	docker push $(IMAGE)

# The lock for conda: Python from conda-forge, the rest by pip at the same versions.
environment.yaml: requirements.lock
	printf '# Made from requirements.lock by `make environment.yaml`: conda env create --file environment.yaml\nname: voxray\nchannels: [conda-forge]\ndependencies:\n  - python=3.11\n  - pip\n  - pip:\n' > $@
	sed -n 's/^\([A-Za-z0-9].*\)$$/      - \1/p' requirements.lock >> $@
