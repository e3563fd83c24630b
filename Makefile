PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test contract lint types check bench bench-live bench-operations bench-vectors dual-mutations live-campaign load-campaign \
	kill-campaign kill-campaign-each rollback-campaign chroma-campaign verify-mutations clean

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: $(VENV)/.installed
	$(BIN)/iceburg-db demo

# Three at a time on two processors: each waits for PostgreSQL and for the disk in between.
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 3 --dist loadfile

# All of the contract on every form of the layer; some minutes.
contract: $(VENV)/.installed
	ICEBURG_CONTRACT=all $(BIN)/python -m pytest -n 2 --dist load tests/contract

# The guards of dual write taken out one at a time; a quarter of an hour. Which check fails goes to docs/dual-write.md.
dual-mutations: $(VENV)/.installed
	$(BIN)/python -m tests.faults.guard_mutations --write

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed
	$(BIN)/mypy

check: lint types test

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.copy_speed

# Vector indexes of either kind: build, recall, latency; a minute.
bench-vectors: $(VENV)/.installed
	$(BIN)/python -m benchmarks.vector_search

bench-operations: $(VENV)/.installed
	$(BIN)/python -m benchmarks.operations --entities 1500000

# What an application feels of a live migration, lag, catching up; about three minutes.
bench-live: $(VENV)/.installed
	$(BIN)/python -m benchmarks.live --entities 300000

# Four processes, 5,000 writes each, PostgreSQL killed ten times meanwhile; some minutes.
load-campaign: $(VENV)/.installed
	$(BIN)/python -m tests.faults.load_campaign --processes 4 --writes 5000 --restarts 10

# Twenty times the whole way under load, from migrate --live through cutover and back to finalize, half of them with
# kills; some 40 minutes.
# CHROMA names Pythons that have chromadb, with commas between them.
live-campaign: $(VENV)/.installed
	$(BIN)/python -m tests.faults.live_campaign --seeds 20 $(if $(CHROMA),--chroma $(CHROMA))

# Twenty kills at random moments of a large migration, and of bringing it up to date; about a quarter of an hour.
kill-campaign: $(VENV)/.installed
	$(BIN)/python -m tests.faults.kill_campaign --entities 1500000 --kills 20

# Twenty migrations, each killed once, run to the end and verified; about an hour.
kill-campaign-each: $(VENV)/.installed
	$(BIN)/python -m tests.faults.kill_campaign --entities 1500000 --kills 20 --each --matrix-only

# There and back, with a thousand writes to PostgreSQL alone and forty kills; then files of every form; a quarter of an hour.
rollback-campaign: $(VENV)/.installed
	$(BIN)/python -m tests.faults.rollback_campaign --entities 100000 --writes 1000 --kills 20
	ICEBURG_ROLLBACK_EXAMPLES=400 $(BIN)/python -m pytest -q tests/integration/test_rollback_laws.py

# Ninety kinds of damage to a migrated target, and what finds each; the table goes to docs/verification.md. Some minutes.
verify-mutations: $(VENV)/.installed
	$(BIN)/python -m tests.faults.verify_mutations --write

# An environment with chromadb itself, half a gigabyte: what rollback makes Chroma directories with.
.venv-chroma/.installed: requirements-chroma.lock
	$(PYTHON) -m venv .venv-chroma
	.venv-chroma/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-chroma.lock
	touch $@

# Every Chroma store of the fixtures, there and back, opened and asked by chromadb; some minutes.
chroma-campaign: $(VENV)/.installed .venv-chroma/.installed
	$(BIN)/python -m pytest -q tests/acceptance/test_rollback_chroma.py
	$(BIN)/python -m tests.acceptance.chroma_campaign .venv-chroma/bin/python

clean:
	rm -rf $(VENV) .venv-chroma build dist
