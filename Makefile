# `make demo` and `make test` do all set-up from nothing and then the job; a second call starts at once.
# NO_MKDOCS_2_WARNING is the theme's: without it a notice on the future of mkdocs is printed with every build.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo install test lint docs benchmark clean

demo: $(VENV)/.demo
	$(BIN)/deltasam compare demo

install: $(VENV)/.installed

test: $(VENV)/.installed
	$(BIN)/pytest -n auto --dist loadgroup

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

benchmark: $(VENV)/.installed
	$(BIN)/python benchmarks/cost.py

$(VENV)/.demo: EXTRAS := cli,demo,diagnostics
$(VENV)/.installed: EXTRAS := cli,demo,diagnostics,hessian,track,docs,dev

$(VENV)/.demo $(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@# Something here asks for torchvision, whose common build does not load beside a CPU build of torch; transformers
	@# then does not load either. Nothing of ours needs it.
	@if $(BIN)/pip show --quiet torchvision 2>/dev/null && ! $(BIN)/python -c "import torchvision" 2>/dev/null; then \
		$(BIN)/pip uninstall --quiet --yes torchvision; fi
	@touch $@

clean:
	rm -rf $(VENV) runs build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
