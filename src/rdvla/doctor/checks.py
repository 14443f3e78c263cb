"""One line of a diagnosis, and comparisons that make one."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rdvla.errors import RDVLAError

Status = Literal["pass", "warn", "fail", "skip"]

OUTPUT_LIMIT = 2e-5
SETTLED = 16
"""The output limit is for float32 numbers of order one after up to so many iterations."""


@dataclass(frozen=True)
class Check:
    """What was compared and how it came out.

    Attributes:
        case: where it comes from, e.g. `head/main` or `environment`.
        quantity: what was compared.
        status: `fail` makes `rdvla doctor` exit with 1; `warn` and `skip` do not.
        difference: the largest difference found, if numbers were compared.
        limit: the largest difference allowed.
        note: what a person should know, or do.
    """

    case: str
    quantity: str
    status: Status
    difference: float | None = None
    limit: float | None = None
    note: str = ""


def compare(
    case: str, quantity: str, found: Any, expected: Any, limit: float, *, relative: bool = False, note: str = ""
) -> Check:
    """Compare two arrays by their largest absolute difference.

    Args:
        case: where it comes from.
        quantity: what is compared.
        found: ours, a tensor or array.
        expected: the reference, of the same shape.
        limit: the largest difference allowed.
        relative: divide the difference by the largest magnitude in `expected`.
        note: goes into the check.
    """
    ours, reference = as_float64(found), as_float64(expected)
    if ours.shape != reference.shape:
        shapes = f"shape {list(ours.shape)} instead of {list(reference.shape)}"
        return Check(case, quantity, "fail", limit=limit, note=shapes)
    difference = float(np.max(np.abs(ours - reference), initial=0.0))
    if relative:
        difference /= max(float(np.max(np.abs(reference), initial=0.0)), 1e-12)
    return within(case, quantity, difference, limit, note=note)


def compare_outputs(case: str, quantity: str, found: Any, expected: Any, iterations: int = 1) -> Check:
    """Compare what a network gives after `iterations` of its core, by the largest absolute difference.

    Another processor adds in another order. What that moves grows with the numbers, and every iteration adds its own:
    the limit is `OUTPUT_LIMIT`, times the largest magnitude in `expected` and the root of `iterations` / `SETTLED`
    where that is more.
    """
    size = float(np.max(np.abs(as_float64(expected)), initial=0.0))
    return compare(case, quantity, found, expected, OUTPUT_LIMIT * max(1.0, size * math.sqrt(iterations / SETTLED)))


def within(case: str, quantity: str, difference: float, limit: float, *, note: str = "") -> Check:
    """Return whether `difference` is a number of at most `limit`."""
    return Check(case, quantity, "pass" if difference <= limit else "fail", difference, limit, note)


def orientation(case: str, quantity: str, found: Any, expected: Any, limit: float) -> Check:
    """Compare like `compare`, but only warn: low precision depends on the order of summation."""
    check = compare(case, quantity, found, expected, limit, note="for orientation")
    return replace(check, status="warn") if check.status == "fail" and check.difference is not None else check


def equal(case: str, quantity: str, found: Any, expected: Any) -> Check:
    """Compare two plain values for equality; the difference is that of numbers, otherwise 0 or 1."""
    if found == expected:
        return Check(case, quantity, "pass", 0.0, 0.0)
    numbers = isinstance(found, int | float) and isinstance(expected, int | float)
    return Check(
        case, quantity, "fail", abs(found - expected) if numbers else 1.0, 0.0, f"{found} instead of {expected}"
    )


def guarded(case: str, run: Callable[[], list[Check]]) -> list[Check]:
    """Run a case; a damaged file or a model that does not fit becomes one failed check, not the end."""
    try:
        return run()
    except (RDVLAError, OSError, KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, RDVLAError) else str(error)
        return [Check(case, "could not be run", "fail", note=reason)]


def unread(case: str, keys: set[str]) -> list[Check]:
    """Return a warning for reference values that nothing compared."""
    if not keys:
        return []
    listed = ", ".join(sorted(keys)[:8]) + (" ..." if len(keys) > 8 else "")
    return [Check(case, "reference values not understood", "warn", note=f"{len(keys)}: {listed}")]


def as_float64(values: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a tensor or array as float64 numpy."""
    if isinstance(values, Tensor):
        return values.detach().to(torch.float64).numpy()
    return np.asarray(values, dtype=np.float64)


def summary(checks: list[Check]) -> Mapping[Status, int]:
    """Count the checks by status."""
    counts: dict[Status, int] = {"pass": 0, "warn": 0, "fail": 0, "skip": 0}
    for check in checks:
        counts[check.status] += 1
    return counts
