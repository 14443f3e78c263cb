# make demo    watch the shipped policy drive LIBERO at several depths; ends with a table and a report
# make test    the whole test suite, simulator included
# make check   style, types and the import rules

RDVLA := .venv/bin/rdvla
CODE := src tests

.PHONY: demo test check format clean

demo: .venv/.installed
	$(RDVLA) demo

test: .venv/.installed
	.venv/bin/python -m pytest

check: .venv/.installed
	.venv/bin/ruff check $(CODE)
	.venv/bin/ruff format --check $(CODE)
	.venv/bin/mypy
	.venv/bin/lint-imports

format: .venv/.installed
	.venv/bin/ruff check --fix $(CODE)
	.venv/bin/ruff format $(CODE)

.venv/.installed: pyproject.toml constraints.txt scripts/setup.sh
	scripts/setup.sh

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
