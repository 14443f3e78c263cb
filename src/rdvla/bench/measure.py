"""Cases, and how they are measured: first that all variants give the same, then their times, interleaved."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from rdvla.bench.machine import Machine, Work, floor, seconds
from rdvla.errors import RDVLAError

PUBLISHED = "published"
"""The variant that every other one is compared with."""
OURS = "float32"
"""Ours, exact."""
ACTION_LIMIT = 2e-5
"""Largest difference of normalised actions between exact variants."""
ENCODING_LIMIT = 1e-4
"""Largest difference of hidden states and gradients, relative to the largest number."""

Unit = Literal["ms", "decisions/s", "samples/s", "episodes/min", "chains/min", "MB"]
_PER_SECOND: Mapping[Unit, float] = {"decisions/s": 1, "samples/s": 1, "episodes/min": 60, "chains/min": 60}


class InexactError(RDVLAError):
    """A variant that should be exact computes something else, so its time means nothing."""


@dataclass(frozen=True)
class Variant:
    """One variant of a case.

    Attributes:
        call: does the work once and returns what can be compared with the published variant's (of several samples,
            at least the first).
        samples: how many decisions, training samples or episodes a call handles.
        exact: the result must equal the published one's; otherwise the difference is only reported.
    """

    call: Callable[[], Tensor]
    samples: int = 1
    exact: bool = True


@dataclass(frozen=True)
class Case:
    """One thing to measure, in several variants.

    Attributes:
        section: the table that it belongs to.
        name: its line there.
        unit: of the result.
        runs: by variant, `PUBLISHED` first.
        phases: what a call of `OURS` cannot do without, in float32; empty where no floor is known.
        limit: largest difference of exact variants.
        relative: the limit is a share of the largest published number.
    """

    section: str
    name: str
    unit: Unit
    runs: Mapping[str, Variant]
    phases: Sequence[Work] = ()
    limit: float = ACTION_LIMIT
    relative: bool = False


@dataclass(frozen=True)
class Row:
    """A measured case.

    Attributes:
        values: by variant, one number per repetition, in `unit`.
        differences: by variant, the largest difference from the published result (relative where the case says so).
        floor: the physical limit in `unit`, or None.
    """

    section: str
    name: str
    unit: Unit
    values: Mapping[str, Sequence[float]]
    differences: Mapping[str, float] = field(default_factory=dict)
    floor: float | None = None

    def median(self, variant: str) -> float:
        """Return the variant's result."""
        return statistics.median(self.values[variant])

    def ratio(self, variant: str) -> float | None:
        """Return how many times better than the published variant it is; None without one."""
        if PUBLISHED not in self.values:
            return None
        ours, published = self.median(variant), self.median(PUBLISHED)
        return ours / published if self.unit in _PER_SECOND else published / ours

    def distance(self, variant: str) -> float | None:
        """Return how many times slower than the floor it is; None without one."""
        if self.floor is None:
            return None
        return self.floor / self.median(variant) if self.unit in _PER_SECOND else self.median(variant) / self.floor


@dataclass(frozen=True)
class Timed:
    """A case with the seconds of every repetition by variant, and the differences found before."""

    case: Case
    seconds: Mapping[str, Sequence[float]]
    differences: Mapping[str, float]

    def row(self, machine: Machine) -> Row:
        """Return the results in the case's unit."""
        case = self.case

        def convert(seconds: float, samples: int) -> float:
            return 1e3 * seconds / samples if case.unit == "ms" else _PER_SECOND[case.unit] * samples / seconds

        return Row(
            section=case.section,
            name=case.name,
            unit=case.unit,
            values={name: [convert(s, case.runs[name].samples) for s in self.seconds[name]] for name in case.runs},
            differences=self.differences,
            floor=convert(floor(case.phases, machine), case.runs[OURS].samples) if case.phases else None,
        )


def measure(
    cases: Sequence[Case],
    repeats: int,
    tell: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Timed]:
    """Check all variants of each case, then time them: in every repetition each case and variant once.

    Args:
        cases: what to measure; they share their repetitions, so that another load meets them alike.
        repeats: at least 1.
        tell: is told what happens.
        clock: returns seconds.

    Raises:
        InexactError: an exact variant's result differs from the published one's. Nothing is timed then.
    """
    differences = []
    for case in cases:
        tell(f"{case.section}, {case.name}: same results?")
        differences.append(check(case))
    times: list[dict[str, list[float]]] = [{name: [] for name in case.runs} for case in cases]
    for repeat in range(repeats):
        for case, found in zip(cases, times, strict=True):
            tell(f"{case.section}, {case.name}: {repeat + 1} of {repeats}")
            for name, run in case.runs.items():
                found[name].append(seconds(run.call, clock))
    for case, found, difference in zip(cases, times, differences, strict=True):
        yield Timed(case, found, difference)


def check(case: Case) -> dict[str, float]:
    """Run every variant once and return its difference from the published result.

    Raises:
        InexactError: the difference of an exact variant is not below the limit.
    """
    expected = case.runs[PUBLISHED].call()
    scale = float(expected.abs().max()) if case.relative else 1.0
    found: dict[str, float] = {PUBLISHED: 0.0}
    for name, run in case.runs.items():
        if name == PUBLISHED:
            continue
        result = run.call()[: len(expected)]
        if result.shape != expected.shape:
            raise InexactError(f"{case.section}, {case.name}: {name} returns {result.shape}, not {expected.shape}.")
        found[name] = float((result - expected).abs().max()) / scale
        if run.exact and not found[name] <= case.limit:
            raise InexactError(
                f"{case.section}, {case.name}: {name} differs from the published computation by {found[name]:.1e} "
                f"(limit {case.limit:.0e}); its time means nothing."
            )
    return found


def per_iteration(shallow: Row, deep: Row, iterations: int, floor_ms: float | None) -> Row:
    """Return the cost of one more iteration: what `deep` takes longer than `shallow`, repetition by repetition."""
    values = {
        name: [(long - short) / iterations for short, long in zip(shallow.values[name], deep.values[name], strict=True)]
        for name in deep.values
    }
    return Row(deep.section, "one more iteration", "ms", values, floor=floor_ms)
