# make demo   shows what Batchyard does
# make test   runs everything that CI runs
# Both set themselves up in .venv: they need python3 >= 3.11 with venv, and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := wire pool broker clients cli benchmarks deploy
SOURCES := $(sort $(shell find $(PACKAGES) -type f -not -path '*/__pycache__/*'))

# The peers that Batchyard is compared with, each with what it needs.
PEERS := .venv-peers
PEER_NEEDS := benchmarks/peers/requirements
SITE_PACKAGES := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

# Inputs that `make fuzz` tries, of all targets together.
RUNS ?= 100000

# Test files that run at once; but those that compare what they measure, or whose faults and load are
# many, want the processors for themselves.
JOBS ?= 2
ALONE := $(addprefix tests/benchmarks/,simulation/test_agreement.py load/test_run.py load/test_sending.py \
	load/test_other_servers.py) $(addprefix tests/system/,test_batching.py test_chaos.py \
	test_deadlines.py hostile/test_load.py)

# How long `make chaos` runs; the same seed makes the same choices.
SECONDS ?= 600
SEED ?= $(shell date +%s)

.PHONY: demo test lint types unit fuzz chaos bench bench-peers docs dist clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	@$(BIN)/batchyard demo

test: lint types unit

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy $(patsubst %,-p batchyard.%,$(PACKAGES))

unit: $(VENV)/installed
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder $(addprefix --ignore=,$(ALONE))
	$(BIN)/python -m pytest -q $(ALONE)

# What decodes bytes from outside, under inputs that atheris makes, guided by coverage. What it
# learns is kept in .fuzz, where the next run goes on.
fuzz: $(VENV)/atheris
	@PYTHONPATH=tests $(BIN)/python -m fuzz --runs $(RUNS)

$(VENV)/atheris: $(VENV)/installed
	@echo "Installing atheris into $(VENV) ..."
	@rm -rf build
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--config-settings editable_mode=strict --editable '.[cpu,dev,fuzz]' \
		&& touch $@ || { echo "atheris cannot be installed here: it has wheels for CPython 3.11 to" \
		"3.14 on Linux, x86-64. Without it pytest tests/fuzz tests the same."; exit 1; }

# Random faults under load, against a real server.
chaos: $(VENV)/installed
	CHAOS_SECONDS=$(SECONDS) CHAOS_SEED=$(SEED) $(BIN)/python -m pytest -q -s tests/system/test_chaos.py

bench: $(VENV)/installed
	$(BIN)/batchyard bench small

bench-peers: $(VENV)/installed \
		$(patsubst $(PEER_NEEDS)/%.txt,$(PEERS)/%/installed,$(wildcard $(PEER_NEEDS)/*.txt))
	$(BIN)/batchyard bench peers

# Each stands apart, because their requirements clash, but TensorFlow, which is large: a .pth file
# lends it to all.
$(PEERS)/%/installed: $(PEER_NEEDS)/%.txt $(PEERS)/tensorflow/installed
	@echo "Installing $* into $(@D) ..."
	@$(BIN)/python -m venv --clear $(@D)
	@$(PEERS)/tensorflow/bin/python $(SITE_PACKAGES) > $$($(@D)/bin/python $(SITE_PACKAGES))/tensorflow.pth
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $< \
		&& touch $@ || echo "$* cannot be installed here: it will be skipped."

$(PEERS)/tensorflow/installed: $(PEER_NEEDS)/tensorflow.txt | $(VENV)/bin/python
	@echo "Installing TensorFlow for the peers into $(@D) ..."
	@$(BIN)/python -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

docs: $(VENV)/installed
	$(BIN)/python -m batchyard.cli.configuration_page > docs/configuration.md
	$(BIN)/python -m batchyard.cli.tensorflow_serving.page docs/tensorflow-serving.md

# The wheel and the source distribution, in dist/.
dist: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build
	$(BIN)/python -m build --outdir dist

# tensorflow-serving-api would bring another TensorFlow along, with CUDA: the tests need its messages
# and stubs only.
#
# A strict editable install links each file, so that type checkers and editors follow it: it is
# made anew when files come or go.
$(VENV)/installed: setup.cfg pyproject.toml $(VENV)/sources
	@echo "Installing Batchyard and what it needs into $(VENV) (TensorFlow takes a while) ..."
	@rm -rf build
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--config-settings editable_mode=strict --editable '.[cpu,dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		'tensorflow-serving-api==2.*' || echo "tests with TensorFlow Serving's own client are skipped"
	@touch $@

$(VENV)/sources: FORCE | $(VENV)/bin/python
	@echo '$(SOURCES)' | cmp -s - $@ || echo '$(SOURCES)' > $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Batchyard needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version)."; exit 1; }
	@$(PYTHON) -c "import ensurepip" 2>/dev/null && $(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "$(PYTHON) has no venv (Debian: apt install python3-venv)."; exit 1; }

FORCE:

clean:
	rm -rf $(VENV) $(PEERS) .fuzz build dist *.egg-info
