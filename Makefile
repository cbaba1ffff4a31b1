# make demo      install, then the whole pipeline on the embedded model (3 minutes on 2 cores after installation)
# make check     ruff and the fast tests of one process, the loop while working (under two minutes)
# make test      install, then everything that needs neither a GPU, nor the peers, nor patience; what CI runs
# make test-all  also slow tests and those against SAELens and sparsify (run `make peers` first)
# make peers     .venv-peers, a second environment with the libraries we compare with
# make gpu       eight minutes on a GPU machine: what a CPU cannot show; installs nothing (tests/bench/gpu.py)
# make dashboard .venv-dashboard, an environment of SAEDashboard 0.8.0, whose files we write and read
# make browser   Chromium for the tests of the HTML pages, where apt and root are at hand
# make clean     remove what building and testing left behind; environments stay

PYTHON  ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV    := .venv
PEERS   := .venv-peers
DASHBOARD := .venv-dashboard
BIN     := $(VENV)/bin
WORKERS ?= 2
# Many tests start interpreters: compiled once, the source costs each of them nothing.
PYTEST   = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: demo check test test-all peers dashboard gpu browser clean venv
.DEFAULT_GOAL := test

# torch goes first and by its pin: whatever is installed next then finds it present and does not choose another build.
TORCH := $(shell grep '^torch==' constraints.txt)

venv: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "expected Python 3.11 or newer on the PATH, found none: install one, or make PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,notebooks]'
	touch $@

peers: $(PEERS)/.installed
$(PEERS)/.installed: constraints.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -q "$(TORCH)"
	$(PEERS)/bin/python -m pip install -q "$(TORCH)" sae-lens==6.54.12 eai-sparsify==1.3.3
	$(PEERS)/bin/python -m pip install -q --no-deps dictionary-learning==0.1.0  # its classes need torch alone
	touch $@

# Its newest dependencies do not go with each other: numpy stays below 2, and torchvision is not needed.
dashboard: $(DASHBOARD)/.installed
$(DASHBOARD)/.installed: constraints.txt
	test -x $(DASHBOARD)/bin/python || $(PYTHON) -m venv $(DASHBOARD)
	$(DASHBOARD)/bin/python -m pip install -q "$(TORCH)" sae-dashboard==0.8.0
	$(DASHBOARD)/bin/python -m pip install -q "pyarrow<22"
	$(DASHBOARD)/bin/python -m pip uninstall -q -y torchvision torchaudio
	touch $@

demo: venv
	$(BIN)/saelens-lite demo

check: venv
	$(BIN)/ruff check .
	$(PYTEST) -q -m "not slow and not peer and not gpu and not notebook and not dist and not long"

test: venv
	$(PYTEST) -m "not slow and not peer and not gpu"

test-all: venv
	$(PYTEST)

gpu:
	$(PYTHON) tests/bench/gpu.py --output gpu_run

browser:
	@if command -v chromium chromium-browser google-chrome >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium >/dev/null \
		|| echo "Chromium could not be installed; the tests that need it will be skipped"; \
	else echo "no Chromium, and no root or apt-get to install it; the tests that need it will be skipped"; fi

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache demo_run gpu_run
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
