# Two commands on a fresh machine with Python >= 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
STAMP := $(VENV)/.installed-$(shell cksum requirements.lock | cut -d' ' -f1)
CORES ?= 2
SIZE ?= demo

.PHONY: demo test lint clean-demo bench schema

demo: $(STAMP)
	@$(RUN) python -m preprocessing.synthetic --out demo/raw --size $(SIZE)
	@$(RUN) snakemake --workflow-profile workflow/profiles/demo --cores $(CORES) --configfile workflow/demo.yaml
	@echo "report: $(CURDIR)/demo/results/report/index.html"

test: $(STAMP) lint
	@$(RUN) python -m pytest

lint: $(STAMP)
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) mypy
	@$(RUN) snakefmt --check Snakefile workflow

schema: $(STAMP)
	@$(RUN) python -m smmil.config --schema > workflow/schemas/config.schema.json

$(STAMP): requirements.lock
	@echo "installing the locked packages into $(VENV) (a few minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, found " + sys.version.split()[0])'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@rm -f $(VENV)/.installed-*
	@touch $@
