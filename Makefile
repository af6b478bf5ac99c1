# nvmuser: `make demo` and `make test` do everything from a fresh Debian 12 or 13.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.nvmuser-installed
CHECKED := python nvmf_vfio tests samples debian ci/site

.DEFAULT_GOAL := help
.PHONY: help setup packages test-packages demo test test-matrix lint type unit bench deb docs lock clean

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

setup: packages $(STAMP) ## get and build everything: packages, Python, SPDK, QEMU, the guest
	$(BIN)/nvmuser setup

packages:
	@ci/install-packages

test-packages: packages
	@ci/install-packages ci/debian-packages-tests.txt

# A virtual environment without the stamp was interrupted, or is somebody else's idea: made anew. With an older stamp
# the requirements changed: installed over it.
$(STAMP): requirements.lock pyproject.toml | packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=…")'
	@if [ ! -e $@ ]; then echo "making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); fi
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## boot a guest on an SPDK volume, run fio in it: out/demo/report.html
	$(BIN)/nvmuser bench demo --output out/demo

test: setup test-packages lint type ## set up, then every check and test but the matrix
	$(BIN)/nvmuser setup --guest-kernel bookworm --qemu bookworm --qemu trixie --with rbd
	$(MAKE) --no-print-directory -C tests/c check
	$(BIN)/pytest -q -n 2 tests/unit
	$(BIN)/pytest -m 'not matrix' --durations=15 --ignore tests/unit

test-matrix: setup test-packages ## every guest kernel, firmware and number of controllers, the packages (long)
	@ci/install-packages ci/debian-packages-deb.txt
	@ci/install-packages ci/debian-packages-matrix.txt
	$(BIN)/nvmuser setup --guest-kernel bookworm --qemu bookworm --qemu trixie --with rbd
	$(BIN)/pytest -m matrix

lint: $(STAMP) ## ruff, its formatter too
	$(BIN)/ruff check $(wildcard $(CHECKED))
	$(BIN)/ruff format --check --quiet $(wildcard $(CHECKED))

type: $(STAMP) ## mypy --strict
	$(BIN)/mypy

unit: $(STAMP) ## the unit tests alone: no SPDK, no QEMU, seconds
	$(BIN)/pytest -q -n 2 tests/unit

bench: setup ## compare with the other ways, at most 10 minutes: bench/latest
	$(BIN)/nvmuser bench compare --peers endpoint,nvme,virtio-blk,vhost-user-blk-spdk \
		--rounds 6 --runtime 1 --minutes 9 --output bench/latest

deb: setup ## Debian packages for this release: dist/*.deb (needs debhelper, dh-python)
	@ci/install-packages ci/debian-packages-deb.txt
	dpkg-buildpackage --build=binary --unsigned-changes --no-check-builddeps
	mkdir -p dist && mv ../nvmuser*_$$(dpkg-parsechangelog -S Version)_*.deb dist/
	rm -f ../nvmuser_$$(dpkg-parsechangelog -S Version)_*.buildinfo ../nvmuser_$$(dpkg-parsechangelog -S Version)_*.changes

docs: $(STAMP) ## the site: out/site/index.html
	@[ -e out/site-venv/bin/mkdocs ] || { $(PYTHON) -m venv out/site-venv && \
		out/site-venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r ci/site/requirements.lock; }
	$(BIN)/python ci/site/pages.py out/site-pages
	NO_MKDOCS_2_WARNING=1 out/site-venv/bin/mkdocs build --quiet --config-file ci/site/mkdocs.yml

lock: $(STAMP) ## write requirements.lock anew from pyproject.toml (needs uv)
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --all-extras --python-version 3.11 \
		--output-file requirements.lock pyproject.toml
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		--output-file ci/site/requirements.lock ci/site/requirements.in

clean: ## remove what the build and the tests left here (not the cache: rm -r ~/.cache/nvmuser)
	rm -rf out build dist bench/latest .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
