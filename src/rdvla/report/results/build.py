"""Every table by name, and where it goes: a section of a page of Markdown, and JSON."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rdvla.errors import ConfigError, StorageError, suggest
from rdvla.files import write_atomically, write_json
from rdvla.report.load import Series, say_mixed, say_starts
from rdvla.report.results.ablations import ablations_table
from rdvla.report.results.chains import chains_table
from rdvla.report.results.depth import depth_table
from rdvla.report.results.given import Given, say_command
from rdvla.report.results.iterations import iterations_table
from rdvla.report.results.pro import pro_table
from rdvla.report.results.strategies import strategies_table
from rdvla.report.results.suites import suites_table
from rdvla.report.results.table import Section

TABLES: Mapping[str, Callable[[Given], Section]] = {
    "suites": suites_table,
    "depth": depth_table,
    "strategies": strategies_table,
    "iterations": iterations_table,
    "ablations": ablations_table,
    "pro": pro_table,
    "chains": chains_table,
}
"""Name -> what makes the table, in the order of the page."""

TITLE = """# Results

The published tables on policies of ours. Every section is written by the command below its tables. Rates stand with
their 95 % Wilson intervals and successes of episodes, means with those of resampled tasks (of one task: episodes; of
chains: chains); differences are of episodes that both rules played (same task, start and seed), with the score interval
for pairs and the exact McNemar test.
"""


def make_table(name: str, given: Given) -> Section:
    """Return a table.

    Raises:
        ConfigError: no table of that name, or the runs lack what it needs.
    """
    if name not in TABLES:
        raise ConfigError(f"unknown table '{name}' (one of {', '.join(TABLES)}).{suggest(name, TABLES)}")
    return TABLES[name](given)


def possible_tables(given: Given) -> list[Section]:
    """Return the tables that can be made from what is given, for its report; they name what they lack themselves."""
    sections = []
    for make in TABLES.values():
        with suppress(ConfigError):  # the runs lack what this table needs, or it is not about names
            sections.append(make(given))
    return sections


def whole_tables(series: Series) -> list[Section]:
    """Return the tables that the runs of a policy hold whole, for its report."""
    return [section for section in possible_tables(Given(series)) if not section.missing]


def provenance(given: Given, command: Sequence[str]) -> dict[str, Any]:
    """Return where the numbers of a table come from: command, policies with fingerprints, runs with theirs."""
    policies = [
        {
            "name": series.label,
            "digest": str(series.runs[0].config.get("policy_digest", "")),
            "episodes": len(series.records),
            "starts": say_starts(series.records),
            "mixed": say_mixed(series.records),
            "runs": [say_command(run.command) for run in series.runs],
        }
        for series in given.all
    ]
    return {"command": say_command(command), "policies": policies}


def write_section(section: Section, source: Mapping[str, Any], page: Path, json: Path | None = None) -> str:
    """Put a section into a page, in the place of the one of its name, and return it as Markdown.

    Args:
        section: the table.
        source: its `provenance`.
        page: the Markdown file; a new one gets a title.
        json: where the numbers go as well.

    Raises:
        ConfigError: the page's markers are damaged.
        StorageError: a file cannot be read or written.
    """
    text = f"{section.markdown()}\n\n{_sources(source)}"
    write_atomically(page, put(_read(page), section.name, text))
    if json is not None:
        write_json(json, {"schema": 1, **section.as_json(), "source": dict(source)})
    return text


def put(page: str, name: str, text: str) -> str:
    """Return the page with `text` between the markers of `name`; a new section stands before those of later tables.

    Raises:
        ConfigError: a marker is there without the other, or twice.
    """
    begin, end = f"<!-- rdvla results {name} -->", f"<!-- end of rdvla results {name} -->"
    block = f"{begin}\n{text}\n{end}"
    if (page.count(begin), page.count(end)) == (1, 1) and page.index(begin) < page.index(end):
        return page[: page.index(begin)] + block + page[page.index(end) + len(end) :]
    if begin in page or end in page:
        raise ConfigError(f"the page's section '{name}' is damaged: it needs one '{begin}' and, after it, one '{end}'.")
    later = list(TABLES)[list(TABLES).index(name) + 1 :]
    found = re.search(f"<!-- rdvla results ({'|'.join(later)}) -->", page) if later else None
    if found is None:
        return f"{page.rstrip()}\n\n{block}\n"
    return f"{page[: found.start()]}{block}\n\n{page[found.start() :]}"


def _read(page: Path) -> str:
    try:
        return page.read_text(encoding="utf-8")
    except FileNotFoundError:
        return TITLE
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot read '{page}': {error}; name another page.") from None


def _sources(source: Mapping[str, Any]) -> str:
    policies = [
        f"{each['name']} {each['digest'] or '(no fingerprint)'}, {each['episodes']:,} episodes, {each['starts']}"
        + (f" (mixed: {each['mixed']})" if each["mixed"] else "")
        for each in source["policies"]
    ]
    runs = dict.fromkeys(command for each in source["policies"] for command in each["runs"])
    lines = ["```", source["command"], *(f"# {command}" for command in runs), "```"]
    return f"Policy: {'; '.join(policies)}.\n\n" + "\n".join(lines)
