"""What every table is made of, and how it reads as Markdown and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rdvla.eval.intervals import Mean, Rate
from rdvla.eval.paired import Comparison, Interval
from rdvla.eval.ranks import FEWEST, Correlation
from rdvla.eval.summary import group_by
from rdvla.report.against import Against
from rdvla.report.findings import p_value, percent


@dataclass(frozen=True)
class Cell:
    """What a table says at one place.

    Attributes:
        text: for people.
        value: the same as JSON has it.
    """

    text: str
    value: Any = None


BLANK = Cell("-")


def words(text: str) -> Cell:
    """Return text."""
    return Cell(text, text)


def rate_cell(rate: Rate) -> Cell:
    """Return a success rate with n and its interval: `93 % (89-96), 186/200`."""
    if not rate.n:
        return BLANK
    text = f"{percent(rate)} ({100 * rate.low:.0f}-{100 * rate.high:.0f}), {rate.successes}/{rate.n}"
    return Cell(text.replace("\u00a0", " "), rate.as_json())


def share_cell(share: float | None) -> Cell:
    """Return a published share without n; None stands for one that was not published."""
    return BLANK if share is None else Cell(f"{100 * share:.1f} %", share)


def number_cell(number: Mean | Interval | float, unit: float = 1, sign: str = "", digits: int = 2) -> Cell:
    """Return a number, with its interval where it has one.

    Args:
        number: the number.
        unit: what it is multiplied by for people: 100 for points and percent.
        sign: `+` tells the sign of every number.
        digits: behind the point.
    """
    whole = [number] if isinstance(number, (int, float)) else [number.value, number.low, number.high]
    value, *ends = (f"{unit * each:{sign}.{digits}f}".replace("-", "\u2212") for each in whole)
    text = f"{value} ({ends[0]} to {ends[1]})" if ends else value
    return Cell(text, dict(zip(("value", "low", "high"), [*whole, None, None], strict=False)))


def against_cell(against: Against) -> Cell:
    """Return a difference of success in points, with its interval and the p-value of the paired test."""
    return paired_cell(against.comparison)


def paired_cell(found: Comparison) -> Cell:
    """Return the same of a comparison alone."""
    text = f"{number_cell(found.difference, 100, '+', 1).text}, p {p_value(found.p_value)}"
    return Cell(text.replace("\u00a0", " "), found.as_json())


def correlation_text(found: Correlation | None, things: int) -> str:
    """Return the rank correlation of so many things with its interval and p-value; None is one that is not defined."""
    if things < FEWEST:
        return "no rank correlation, too few to say"
    if found is None:
        return "no rank correlation, they do not differ"
    text = f"rank correlation {number_cell(found.value, sign='+').text}, p {p_value(found.p_value)}"
    return text.replace("\u00a0", " ")


@dataclass(frozen=True)
class Table:
    """A table: its head, and rows of as many cells, the first of which names the row.

    Attributes:
        title: above it; empty where the section has one table only.
        columns: the head.
        rows: the rows.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def as_json(self) -> dict[str, Any]:
        """Return every row by the names of the columns."""
        rows = [dict(zip(self.columns, (cell.value for cell in row), strict=True)) for row in self.rows]
        return {"title": self.title, "rows": rows}

    def markdown(self) -> str:
        """Return it as Markdown."""
        head = [_line(self.columns), _line(["---"] * len(self.columns))]
        table = "\n".join([*head, *(_line([cell.text for cell in row]) for row in self.rows)])
        return f"**{self.title}**\n\n{table}" if self.title else table


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _further(against: Against) -> str:
    """Return what differs beside the execution, which the names of rules say."""
    return "; ".join(fact for fact in against.differences if not fact.startswith("execution:"))


@dataclass(frozen=True)
class Section:
    """One of the published tables on a policy of ours.

    Attributes:
        name: as the command has it.
        title: its heading.
        tables: the numbers.
        sentences: what they show, in words computed from them.
        comparisons: the paired tests behind them.
        missing: what is not there, and what would play it.
    """

    name: str
    title: str
    tables: tuple[Table, ...]
    sentences: tuple[str, ...] = ()
    comparisons: tuple[Against, ...] = ()
    missing: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the numbers under plain names."""
        return {
            "table": self.name,
            "title": self.title,
            "tables": [table.as_json() for table in self.tables],
            "sentences": list(self.sentences),
            "comparisons": [each.as_json() for each in self.comparisons],
            "missing": list(self.missing),
        }

    @property
    def notes(self) -> list[str]:
        """What is said below the tables: findings, paired tests, what is missing."""
        tests = [f"{each.name} against {each.baseline}: {'; '.join(each.judgement)}." for each in self.comparisons]
        facts = group_by(self.comparisons, _further)
        differing = []
        for fact, found in facts.items():
            alike = len(facts) == 1 and len(found) > 1
            names = ["All of these"] if alike else [f"{each.name} against {each.baseline}" for each in found]
            differing += [f"{name} also {'differ' if alike else 'differs'}: {fact}." for name in names if fact]
        return [*self.sentences, *tests, *differing, *(f"Missing: {each}" for each in self.missing)]

    def markdown(self) -> str:
        """Return heading, tables and notes as Markdown."""
        notes = "\n".join(f"- {note}" for note in self.notes)
        parts = [f"## {self.title}", *(table.markdown() for table in self.tables), notes]
        return "\n\n".join(part for part in parts if part)
