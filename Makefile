# make help       this list
# make run        train and judge on synthetic conversations -> runs/demo/
# make test       every check; the last line is pytest's
# make docs       the site, from the notebooks' saved outputs -> _docs/
# make notebooks  execute all notebooks in place, so that pages and README show fresh outputs
# make bench      speed and memory against yardsticks, a quick profile -> runs/bench/; FULL=1: everything -> results/; DATA=folder
# make results    the experiments behind the result page -> results/*.csv: hours, goes on where it was stopped; DATA=folder of data sets, JOBS=2, ONLY=names
# make results-quick  the same way with a tenth of the epochs, one seed and three models -> runs/quick/results/
# Each sets up .venv first. PYTHON=python3.12 make ... picks another interpreter.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt
KATEX := node_modules/katex/dist
# one thread a process: two notebooks or two jobs share the machine without getting in each other's way
export OMP_NUM_THREADS ?= 1
export MPLBACKEND ?= agg
# packages come uncompiled; each process would compile them anew where this is set
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run bench results results-quick test docs notebooks readme clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

.venv/bin/python:
	$(PYTHON) -m venv .venv

# what running needs, and no more; modules are compiled when first imported, which most never are: to compile all 20,000 takes a minute and more
.venv/.run: settings.ini setup.py constraints.txt | .venv/bin/python
	$(PIP) --no-compile -e .
	@touch $@

# what developing needs besides
.venv/.dev: settings.ini setup.py constraints.txt | .venv/bin/python
	$(PIP) --no-compile -e '.[dev]'
	@touch $@ .venv/.run

run: .venv/.run
	$(BIN)/gsdnet benchmark synthetic --models gsdnet,zero_fill,bigru --rates 0,0.3,0.5,0.7 --seeds 3 --jobs 2 --out runs/demo

# `FULL=1 make bench` takes about an hour; alone on the machine, if its seconds are to mean something
BENCH = $(BIN)/python benchmarks
HOW = $(if $(DATA),--data $(DATA)) $(if $(FULL),--out results,--quick --out runs/bench)
bench: .venv/.run
	$(BENCH)/inference.py $(HOW)
	$(BENCH)/memory.py $(HOW)
	$(BENCH)/training_epoch.py $(HOW) $(if $(FULL),--scores)
	$(BENCH)/recovery.py $(HOW) $(if $(FULL),--samples)
	$(BENCH)/profile_epoch.py $(HOW)
	$(BENCH)/growth.py $(HOW)
	$(BENCH)/long.py $(HOW)
	$(BENCH)/stability.py $(HOW)

JOBS ?= 1
WHICH = $(BENCH)/results.py --jobs $(JOBS) $(if $(DATA),--data $(DATA)) $(if $(ONLY),--only $(ONLY))
results: .venv/.run
	$(WHICH)

results-quick: .venv/.run
	$(WHICH) --quick --out runs/quick/results --runs runs/quick/runs

# formulas that need no network, where npm is at hand; elsewhere the pages load KaTeX from its CDN. axe-core judges pages in a test
$(KATEX):
	-@! command -v npm >/dev/null || npm install --silent --prefix . --no-save --no-package-lock --no-audit --no-fund katex@0.16.11 axe-core@4

docs: .venv/.dev $(KATEX)
	$(BIN)/python tools/build_docs.py --katex $(KATEX)

notebooks: .venv/.dev
	$(BIN)/nbdev_export
	$(BIN)/python tools/run_notebooks.py
	$(BIN)/python tools/build_readme.py

readme: .venv/.dev
	$(BIN)/python tools/build_readme.py

test: .venv/.dev $(KATEX)
	$(BIN)/python tools/check_sync.py
	$(BIN)/python tools/build_docs.py --katex $(KATEX) & docs=$$!; $(BIN)/nbdev_test --n_workers 2; pages=$$?; wait $$docs && exit $$pages
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf _docs _proc build runs/demo
