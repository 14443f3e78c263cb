"""A time budget for one decision: what its stages cost, and whether another iteration still fits."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal["encode", "iteration", "decode"]


@dataclass
class Costs:
    """Running estimates of what the stages of a decision take, in seconds; None before the first measurement.

    Attributes:
        encode: from the observation to the projected conditioning and the initial scratchpad.
        iteration: the core, once.
        decode: the Coda, once: at the end, or to look whether the actions still change.
    """

    encode: float | None = None
    iteration: float | None = None
    decode: float | None = None

    def correct(self, stage: Stage, seconds: float) -> None:
        """Move a stage's estimate half way to what it has just taken."""
        known: float | None = getattr(self, stage)
        setattr(self, stage, seconds if known is None else (known + seconds) / 2)


class Timer:
    """Times the stages of one decision as they pass, and foresees from their costs whether the next one fits.

    Attributes:
        costs: what the stages are thought to take.
        spent: seconds that went into each in this decision.
    """

    def __init__(
        self,
        budget: float = math.inf,
        costs: Costs | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start the clock.

        Args:
            budget: seconds from now in which the answer should be there.
            costs: estimates of earlier decisions of this batch size, corrected by this one; None starts without.
            clock: returns seconds.
        """
        self.costs = Costs() if costs is None else costs
        self.spent: dict[Stage, float] = {"encode": 0.0, "iteration": 0.0, "decode": 0.0}
        self._clock = clock
        self._lap = clock()
        self._deadline = self._lap + budget

    def lap(self, stage: Stage, times: int = 1) -> None:
        """Note that `stage` has just ended, made `times` times in one; it began when the one before it ended."""
        now = self._clock()
        self.costs.correct(stage, (now - self._lap) / times)
        self.spent[stage] += now - self._lap
        self._lap = now

    def allows_another(self, decodings: int) -> bool:
        """Return whether one more iteration, and so many decodings after it, would end within the budget."""
        iteration = self.costs.iteration or 0.0
        decode = iteration if self.costs.decode is None else self.costs.decode  # the Coda is no deeper than the core
        return self._clock() + iteration + decodings * decode <= self._deadline
