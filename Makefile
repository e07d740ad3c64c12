# One word per chore; `make app` is all that a new machine needs. Each chore sets up .venv when it is missing
# or when the list of packages has changed, and otherwise starts at once.
#
#   make app      explore a photograph in the browser    PORT=7861, HOST=0.0.0.0, WEIGHTS=name or file
#   make lab      the notebooks in JupyterLab            PORT=8889
#   make test     the tests                              LONG=1 for all of them, ARGS="-k gram" for some
#   make check    format, lint, types, import directions
#   make bench    measure the speed of extraction and of hovering here
#   make clean    remove .venv
#
# PYTHON=python3.12 chooses the interpreter. On Linux, PyPI's torch brings CUDA along (several GB); without a GPU
# save the download with TORCH_INDEX=https://download.pytorch.org/whl/cpu at the first call.

PYTHON ?= python3
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: app lab test check bench clean
.DELETE_ON_ERROR:

# HOST counts only when written on the command line: some shells export the machine's name under it, and the
# app would then be open to the network without anyone asking.
app: $(VENV)/app.stamp
	@$(BIN)/gramscope app $(if $(PORT),--port '$(PORT)') $(if $(WEIGHTS),--weights '$(WEIGHTS)') \
	    $(if $(findstring command,$(origin HOST)),--host '$(HOST)') $(ARGS)

# The notebooks are kept as .py; that a double click opens them as notebooks is a setting inside .venv.
lab: $(VENV)/app.stamp
	@mkdir -p $(VENV)/etc/jupyter/labconfig
	@$(BIN)/jupytext-config --settings-file $(VENV)/etc/jupyter/labconfig/default_setting_overrides.json \
	    set-default-viewer python
	@$(BIN)/jupyter lab notebooks $(if $(PORT),--port '$(PORT)') $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

test: $(VENV)/dev.stamp
	@$(BIN)/python -m pytest $(if $(ARGS),,-n 2 --dist loadgroup --no-loadscope-reorder) $(if $(LONG),,-m "not long") $(ARGS)

check: $(VENV)/dev.stamp
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(VENV)/dev.stamp
	@$(BIN)/python -m workbench.bench $(ARGS)

clean:
	rm -rf $(VENV)

# torch goes first and pinned: left to itself, pip may choose a newer and much larger build.
define install
	@echo "Setting up $(VENV): a few minutes the first time, seconds later."
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)') '$(TORCH)'
	$(PIP) -e '$(1)'
endef

$(VENV)/app.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	$(call install,.)
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	$(call install,.[dev])
	@touch $(VENV)/app.stamp $@

# the last thing that venv writes: after an interruption it is missing and venv starts anew
$(BIN)/pip:
	@command -v '$(PYTHON)' >/dev/null || { \
	    echo "There is no $(PYTHON) here. Gramscope needs Python 3.11 or newer: install it, or name one with" \
	         "make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; } >&2
	@found=$$('$(PYTHON)' -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	case "$$found" in 3.1[1-9]|3.[2-9][0-9]) ;; *) \
	    echo "Gramscope needs Python 3.11 or newer, and $(PYTHON) is $${found:-not working}: install a newer one," \
	         "or name one with make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1;; esac >&2
	@'$(PYTHON)' -m venv --clear $(VENV) || { rm -rf $(VENV); \
	    echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; \
	    exit 1; } >&2
