# On a new machine with Python >= 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
STAMP := $(VENV)/.installed-$(shell cksum requirements.lock | cut -d' ' -f1)
CORES ?= 2
SIZE ?= demo
# of the generator; docs/results/demo.md says how it was chosen
SEED ?= 2026

.PHONY: demo test lint bench schema lock docs

# The lock admits one demo at a time. Under it, locks that a killed Snakemake left are safe to remove.
demo: $(STAMP) optional-viewer
	@mkdir -p demo
	@exec 9>demo/.lock; flock -w 300 9 || { echo "another make demo is running in this folder" >&2; exit 1; }; \
	export PATH="$(CURDIR)/$(VENV)/bin:$$PATH"; set -e; \
	python -m preprocessing.synthetic --out demo/raw --size $(SIZE) --seed $(SEED); \
	if [ -n "$$(ls .snakemake/locks 2>/dev/null)" ]; then snakemake --unlock --configfile workflow/demo.yaml; fi; \
	python -m smmil run --config workflow/demo.yaml --cores $(CORES); \
	printf '\n'; python -m smmil.findings demo/results/tables/comparisons.json; \
	printf '\n%s\n%s\n' "report: $(CURDIR)/demo/results/report/index.html" \
		"slides and scans with their maps: $(VENV)/bin/smmil view demo/results"

# OpenSeadragon for `smmil view`, at the version and hash of package-lock.json.
OSD := smmil/view/static/vendor/openseadragon.min.js

.PHONY: viewer optional-viewer
viewer: $(STAMP) $(OSD)

# without npm's registry, everything but the zoom into slides works
optional-viewer: $(STAMP)
	@test -f $(OSD) || $(MAKE) --no-print-directory viewer || echo "the viewer cannot zoom into slides: run make viewer"

$(OSD): package.json package-lock.json
	@$(RUN) npm ci --ignore-scripts --no-audit --no-fund --fetch-retries=1 --loglevel=error
	@mkdir -p $(@D)
	@cp node_modules/openseadragon/build/openseadragon/openseadragon.min.js node_modules/openseadragon/LICENSE.txt $(@D)
	@touch $@

bench: $(STAMP)
	@$(RUN) python -m bench.sm
	@$(RUN) python -m bench.methods

test: $(STAMP) optional-viewer lint docs
	@$(RUN) OMP_NUM_THREADS=1 python -m pytest --numprocesses $(CORES) --dist loadfile -m "not slow and not slurm"
	@$(RUN) python -m pytest -m "slow or slurm"

lint: $(STAMP)
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) mypy
	@$(RUN) snakefmt --check Snakefile workflow

docs: $(STAMP)
	@$(RUN) OMP_NUM_THREADS=1 sphinx-build -q -W --keep-going -n -b html docs build/docs
	@echo "documentation: $(CURDIR)/build/docs/index.html"

schema: $(STAMP)
	@$(RUN) python -m smmil.config --schema > workflow/schemas/config.schema.json

# Versions in the present lock are kept where they satisfy pyproject.toml; delete the file to renew all of them.
lock: $(STAMP)
	@$(RUN) uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --all-extras \
		--annotation-style line --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

$(STAMP): requirements.lock
	@echo "installing the locked packages into $(VENV) (a few minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, found " + sys.version.split()[0])'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.installed-*
	@touch $@
