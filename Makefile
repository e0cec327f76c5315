# Two commands are all that a fresh machine needs: `make demo` and `make test`. Everything else is a part of them.
# `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

-include .env
export HF_TOKEN HF_ENDPOINT
export HOTLINE_VERSION := $(shell scripts/version)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export MOLECULE_COMMAND_BORDERS := 0
PYTHON ?= python3
ROLES_WITH_TESTS := $(sort $(foreach f,$(wildcard roles/*/molecule/default/molecule.yml),$(word 2,$(subst /, ,$(f)))))

.PHONY: help
help:  ## this list
	@echo "Hotline $(HOTLINE_VERSION)"
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*##/\t/' | expand -t 18

# ---------------------------------------------------------------------------------------------------- what a machine needs

.venv/.ready: requirements.txt
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || scripts/need python3-venv - "makes the Python environment of this repository"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hotline: Python 3.11 or newer is needed here (ansible-core 2.19). Mend: make PYTHON=python3.12 …")'
	@echo "hotline: making .venv from requirements.txt (Ansible, test tools, Node; 1.3 GB, a minute or two, only once)"
	@# The lock names everything, so nothing is resolved: pip would take a[extra] and a for two packages, one of them not pinned.
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.txt 2> >(grep -v '^WARNING: Location' >&2)
	@touch $@

.PHONY: setup
setup: .venv/.ready  ## the Python environment in .venv, for ansible-playbook
	@echo "hotline: ready. Next: source .venv/bin/activate"

.PHONY: page-packages
page-packages: client/node_modules/.ready
client/node_modules/.ready: client/package-lock.json .venv/.ready
	@echo "hotline: fetching what the page is built with (npm ci)"
	@cd client && npm ci --silent --no-audit --no-fund
	@touch $@

.venv-engine/.ready: tests/engine/requirements.txt roles/moshi/files/locks/cpu-3.11.txt .venv/.ready
	@echo "hotline: making .venv-engine (torch for the CPU and moshi, as hosts get them; a minute, only once)"
	@tests/engine/make-venv

.PHONY: hosts
hosts:
	@scripts/need debootstrap debootstrap "makes the base system of throwaway hosts" \
	    systemd-container systemd-nspawn "boots throwaway hosts" \
	    openssh-client ssh "reaches hosts"

.PHONY: lanes
lanes:
	@scripts/need nftables nft "gives two hosts at a time networks of their own"

.PHONY: speech
speech:
	@scripts/need espeak-ng espeak-ng "speaks into the line, since nobody sits at a test"

.PHONY: database
database:
	@scripts/need postgresql /usr/lib/postgresql "is the other database that the orchestrator's tests run on"

.PHONY: names
names:
	@scripts/need pebble pebble "is an authority that issues certificates to the tests" \
	    knot /usr/sbin/knotd "is a name server that the tests may change" \
	    nginx /usr/sbin/nginx "shows the certificates"

.PHONY: browser
browser: speech
	@scripts/need chromium chromium "opens the page as a caller would" firefox-esr firefox-esr "opens it as another caller would" pulseaudio pulseaudio "is the loudspeaker that Firefox wants"

# ------------------------------------------------------------------------------------------------------------------- demo

.PHONY: demo
demo: hosts speech .venv/.ready  ## a running line on a throwaway host of this machine; prints its link
	@ansible-playbook -i inventory/demo.yml playbooks/demo.yml

.PHONY: demo-stop
demo-stop:  ## take the demo's host down and leave nothing of it
	@tests/hosts/host.py destroy demo && echo "hotline: the demo is gone"

# ------------------------------------------------------------------------------------------------------------------ tests

.PHONY: test
test: lint unit engine nginx molecule e2e  ## everything: lint, unit tests, real nginx, every role on a throwaway host, end to end
	@echo "hotline: all tests of $(HOTLINE_VERSION) passed"

.PHONY: lint
lint: .venv/.ready page-packages  ## ansible-lint (production), yamllint, ruff, mypy (strict), the page's linter and type check
	ruff check .
	ruff format --check .
	mypy
	yamllint --strict .
	ansible-lint
	cd client && npm run --silent lint

.PHONY: unit
unit: .venv/.ready page-packages speech database names  ## tests that need neither a host nor torch
	pytest tests/unit tests/roles -n 3 --dist worksteal
	cd client && npm test --silent

.PHONY: engine
engine: .venv-engine/.ready  ## tests that need torch: kyutai's real moshi.server with the tiny model, 8-bit weights
	.venv-engine/bin/python -m pytest tests/engine tests/duplex

.PHONY: soak
soak: .venv-engine/.ready browser page-packages database  ## ten thousand calls, an hour of words, an hour's call in a browser, 200 random kills: nothing of them may stay, or be lost; 5,000 random inputs for each rule
	SOAK=10000 .venv-engine/bin/python -m pytest tests/duplex/test_server.py -k leave_nothing_behind --timeout 7200
	SOAK_MINUTES=60 .venv-engine/bin/python -m pytest tests/duplex/test_words.py -k grows_nothing --timeout 7200
	HOTLINE_CALL_S=3600 pytest tests/e2e/browser/test_endurance.py
	pytest tests/unit tests/roles -n 3 -m hypothesis --hypothesis-profile soak --timeout 7200
	KILLS=200 pytest -s tests/unit/orchestrator/test_kills.py --timeout 7200

.PHONY: words
words: .venv-engine/.ready  ## how well the line hears words: wrong ones, echo, load on this machine (docs/words.md)
	@scripts/need flite flite "speaks as three callers do" espeak-ng espeak-ng "speaks as nobody does"
	for what in errors echo load; do .venv-engine/bin/python -m benchmarks.words $$what; done

.PHONY: nginx
nginx: .venv/.ready  ## the rendered nginx configuration, by requests to a real nginx
	@scripts/need nginx nginx "is what the line's configuration is tried on"
	pytest tests/nginx

.PHONY: molecule
molecule: hosts lanes .venv/.ready page-packages  ## check, converge, idempotence and verify of ROLE=name, or of every role
	@scripts/each-role $(or $(ROLE),$(ROLES_WITH_TESTS))

.PHONY: e2e
e2e: hosts browser .venv/.ready page-packages  ## site.yml on a bare host, then a real browser talks
	pytest tests/e2e/browser -n 2 --dist loadfile
	pytest tests/e2e --ignore tests/e2e/browser --timeout 1500

.PHONY: clean
clean:  ## remove what the targets above made in this folder; hosts and caches of the machine stay
	rm -rf .venv .venv-engine .cache .ansible client/node_modules client/dist

.PHONY: lock
lock: .venv/.ready  ## compile every lock file anew from its .in file
	scripts/lock
