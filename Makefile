# make demo    watch one policy in LIBERO's four suites at several depths; ends with a table and a report
# make test    the whole test suite, simulator included
# make lowest  the network's tests as on a processor without vector instructions
# make check   style, types and the import rules
# make lerobot the plugin in a real LeRobot (LEROBOT=0.4 or 0.6), in an environment of its own
# make worlds  a decision, a training step and an episode beside LeRobot 0.4 and 0.6, and with the lowest versions beside openpi-client

RDVLA := .venv/bin/rdvla
LEROBOT ?= 0.4
CODE := src tests packages scripts

.PHONY: demo test lowest check format lerobot worlds clean

demo: .venv/.installed
	$(RDVLA) demo

test: .venv/.installed
	.venv/bin/python -m pytest

lowest: export ATEN_CPU_CAPABILITY = default
lowest: export ONEDNN_MAX_CPU_ISA = SSE41
lowest: .venv/.installed
	.venv/bin/python -m pytest tests/model tests/parity -m "not slow"

check: .venv/.installed
	.venv/bin/ruff check $(CODE)
	.venv/bin/ruff format --check $(CODE)
	.venv/bin/mypy
	.venv/bin/lint-imports

lerobot:
	scripts/lerobot_env.sh $(LEROBOT)
	.venv-lerobot-$(LEROBOT)/bin/python -m pytest packages/lerobot_policy_rdvla $(ARGS)

worlds:
	scripts/worlds.sh

format: .venv/.installed
	.venv/bin/ruff check --fix $(CODE)
	.venv/bin/ruff format $(CODE)

.venv/.installed: pyproject.toml constraints.txt scripts/setup.sh
	scripts/setup.sh

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
