# The same commands for a person and for CI. `make run` and `make test` set up all they need.
PYTHON ?= python3
DATA ?= ../shared/data
# tests that together run every function that the quick tests of attacks, defenses, objectives,
# metrics, models and training run
SHAPES ?= @tests/shapes.txt
BIN := .venv/bin
STAMP := .venv/.installed
DEV := .venv/.installed-dev
DOCS := .venv/.installed-docs
INSTALLING := Installing into .venv, once: up to 4 minutes, most of them for torch (2 GB). pip says how far it is:

# tests start many processes: without stored bytecode each compiles the project anew
export PYTHONDONTWRITEBYTECODE :=

.PHONY: run test shapes check slow docs wheel zoo results bench gpu optimality clean

run: $(STAMP)  ## install, run the default suite, print the tables, say where the page is
	$(BIN)/python -m robustbench_med run quick

test: $(DEV)  ## install with the dev extra, run the quick tests
	@command -v chromium >/dev/null || echo "No chromium: the tests of the page are skipped. To run them: apt-get install chromium"
	$(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal --benchmark-disable

slow: $(DEV)  ## the tests that `make test` leaves out
	$(BIN)/python -m pytest -m slow -n auto --dist loadfile --benchmark-disable

shapes: $(DEV)  ## some of these tests with the type and shape of every argument and result checked
	CHECK_SHAPES=1 $(BIN)/python -m pytest -m "not slow" -n auto --benchmark-disable $(SHAPES)

check: $(DEV)  ## format, lint, types, import arrows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(DEV)  ## compare with the peers; ratios, minutes
	$(BIN)/python -m pytest benchmarks -q --benchmark-only --benchmark-disable-gc

gpu: $(DEV)  ## on a machine with CUDA: the tests of devices, and one table of speeds; minutes
	$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit('expected a machine with CUDA, got none')" || exit 2
	$(BIN)/python -m pytest -m cuda tests/test_devices.py -q -n 0
	$(BIN)/python -m benchmarks.gpu

optimality: $(DEV)  ## how near the least distance each minimum-norm attack comes; writes docs/optimality.md
	$(BIN)/python -m benchmarks.optimality --out docs/optimality.md

docs: $(DOCS)  ## build the docs into docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -q -n -W --keep-going -b html -d docs/_build/doctrees docs docs/_build/html
	@echo docs/_build/html/index.html

wheel: $(DEV)  ## build dist/*.whl and run it from another folder, with what it requires and nothing else
	bash .ci/wheel

zoo: $(STAMP)  ## train every shipped model again, two at a time (DATA=folder of real images)
	ls robustbench_med/models/zoo/*.json | xargs -n1 basename -s .json | xargs -P2 -I{} \
	  $(BIN)/python -m robustbench_med train {} --out robustbench_med/models/zoo --data $(DATA)

results: $(STAMP)  ## make the committed records again (DATA=folder of real images)
	rm -rf results/quick results/medmnist results/attacks results/segmentation results/defenses results/studies
	$(BIN)/python -m robustbench_med run quick --results results --examples 1
	$(BIN)/python -m robustbench_med run attacks --results results --examples 0
	$(BIN)/python -m robustbench_med run medmnist --results results --examples 0 --data $(DATA)
	$(BIN)/python -m robustbench_med run segmentation --results results --examples 0 --data $(DATA)
	$(BIN)/python -m robustbench_med run defenses --results results --examples 0 --data $(DATA)
	$(BIN)/python -m robustbench_med run studies --results results --examples 0 --data $(DATA)
	for suite in quick attacks medmnist segmentation defenses studies; do \
	  $(BIN)/python -m robustbench_med pack results/$$suite || exit 1; done

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "$(INSTALLING)"
	$(BIN)/python -m pip install --disable-pip-version-check -e .
	touch $@

$(DEV): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "$(INSTALLING)"
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev,peers]"
	touch $@ $(STAMP)

$(DOCS): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "$(INSTALLING)"
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[docs]"
	touch $@ $(STAMP)

clean:
	rm -rf .venv results/local dist docs/_build
