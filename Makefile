# `make demo`, `make test` and `make test-all` do all set-up from nothing and then the job; a second call starts at once.
# NO_MKDOCS_2_WARNING is the theme's: without it a notice on the future of mkdocs is printed with every build.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The oldest versions that pyproject.toml allows, in an environment of their own.
OLDEST := .venv-oldest
STACKS := tests/test_contracts.py tests/per_example tests/test_architectures.py tests/test_more_architectures.py \
	tests/integrations

.PHONY: demo install test test-all test-oldest lint docs benchmark clean

demo: $(VENV)/.demo
	$(BIN)/deltasam demo

install: $(VENV)/.installed

# All but what starts processes or a browser, or breaks the code on purpose.
test: $(VENV)/.installed
	$(BIN)/pytest -n auto --dist loadgroup -m "not slow"

test-all: $(VENV)/.installed
	$(BIN)/pytest -n auto --dist loadgroup

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/pytest -n auto --dist loadgroup $(STACKS)

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

$(OLDEST)/.installed: EXTRAS := cli,demo,diagnostics,dev
$(OLDEST)/.installed: constraints-oldest.txt

$(VENV)/.demo $(VENV)/.installed: constraints.txt

$(VENV)/.demo $(VENV)/.installed $(OLDEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -c $(filter constraints%,$^) -e '.[$(EXTRAS)]'
	@# Something here asks for torchvision, whose common build does not load beside a CPU build of torch; transformers
	@# then does not load either. Nothing of ours needs it.
	@if $(@D)/bin/pip show --quiet torchvision 2>/dev/null && ! $(@D)/bin/python -c "import torchvision" 2>/dev/null; then \
		$(@D)/bin/pip uninstall --quiet --yes torchvision; fi
	@touch $@

clean:
	rm -rf $(VENV) $(OLDEST) runs build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
