# SPDX-License-Identifier: GPL-3.0-or-later
# Each target installs what is missing first (scripts/setup) and does nothing there the second time.

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
BIN := .venv/bin
# The tests write and sync thousands of small files: in memory where there is room for them.
ROOM := $(shell df -k --output=avail /dev/shm 2>/dev/null | tail -1)
TESTS := $(SUDO) env PHANTOMMESH_LAB_BACKEND=userspace $(shell [ "$(ROOM)" -gt 2000000 ] 2>/dev/null && echo TMPDIR=/dev/shm) $(BIN)/python -m pytest

.PHONY: lab test test-kernel bench lint clean setup setup-test lock

lab: setup
	$(SUDO) $(BIN)/phantommesh lab run

# Two labs at a time, of different files: a lab waits more than it computes. Those that count losses come after.
test: setup-test lint
	$(TESTS) -m "not kernel and not slow and not lab" -n auto --dist loadscope
	$(TESTS) -m "lab and not alone and not kernel and not slow" -n 2 --dist loadfile
	$(TESTS) -m "lab and alone and not kernel and not slow"

# On this machine's kernel where it has WireGuard, whole and in minutes; else in a small VM. That emulates the processor, and
# a mesh takes five minutes to come up: what `make test` tries over the same nftables is left to it then, and so is the mesh whose
# pings a rotation must not lose (tests/kernel/test_rotation.py counts them there), unless WHOLE=1 is given.
MORE := $(addprefix tests/lab/test_scatter.py::test_,every_dimension_carries_its_share_both_ways one_underlay_carries_no_more_than_its_share what_others_remove_is_put_back forwarded_traffic_is_scattered_too) \
    $(addprefix tests/lab/test_node.py::test_,sigterm_takes_the_vpn_down an_interface_that_goes_away_is_made_again) \
    $(addprefix tests/attacks/test_,neighbour.py nested.py)

test-kernel:
	scripts/setup kernel
	$(BIN)/python -m compileall -q phantommesh tests  # the VM cannot write here, and compiles forty times as slowly
	more="$(MORE)" less=""; \
	[ "$(WHOLE)" ] || $(SUDO) scripts/kernel-vm --host-has-wireguard || { more=""; less=" and not killed_node and not that_lost and not netcheck and not rotation_changes"; }; \
	$(SUDO) env PHANTOMMESH_LAB_BACKEND=kernel $(if $(WHOLE),PHANTOMMESH_VM_TIMEOUT=7200) scripts/kernel-vm --prefer-host \
	    $(BIN)/python -m pytest -v -m "(kernel or lab) and not slow" -p no:cacheprovider -p no:hypothesispytest --durations=8 \
	    -k "not wireguard_go and not boringtun and not second_lab and not down_ and not no_lab and not root$$less" \
	    tests/kernel tests/lab/test_backends.py tests/lab/test_lab.py $$more

bench:
	scripts/setup bench
	$(SUDO) $(BIN)/python -m benchmarks

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup:
	scripts/setup

setup-test:
	scripts/setup test

# Write the pinned requirements anew from pyproject.toml, with the hashes of every file of every version.
lock:
	rm -rf .venv/lock && python3 -m venv .venv/lock && .venv/lock/bin/pip -q install pip-tools
	echo 'setuptools>=70.1  # what wgnlpy is built with: it has no wheel' | \
	    .venv/lock/bin/pip-compile -q --upgrade --generate-hashes --allow-unsafe --no-annotate --no-header \
	        --no-emit-index-url --no-emit-find-links --no-emit-trusted-host - -o requirements-build.txt
	for set in "requirements.txt" "requirements-dev.txt --extra dev -c requirements.txt" \
	    "requirements-bench.txt --extra bench -c requirements-dev.txt"; do \
	    .venv/lock/bin/pip-compile -q --upgrade --generate-hashes --strip-extras --allow-unsafe --no-header \
	        --no-emit-index-url --no-emit-find-links --no-emit-trusted-host pyproject.toml -o $$set || exit; \
	done

clean:
	rm -rf .venv build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
