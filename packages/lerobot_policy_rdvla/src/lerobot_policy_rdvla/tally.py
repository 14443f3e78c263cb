"""What decisions took, in words for LeRobot's log."""

import logging
from collections.abc import Sequence

from rdvla.types import ActionChunk

log = logging.getLogger(__name__)


class Tally:
    """Means over decisions: iterations, and every number that signals and timings have."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._decisions = 0
        self._iterations = 0
        self._values: dict[str, tuple[float, int]] = {}

    def add(self, chunks: Sequence[ActionChunk]) -> None:
        """Count decisions in; nothing of them is kept, so that a robot may run for days."""
        for chunk in chunks:
            self._decisions += 1
            self._iterations += chunk.num_recurrences
            timings = {f"{stage} ms": ms for stage, ms in chunk.timings.items()}
            for name, value in {**chunk.signals, **timings}.items():
                total, count = self._values.get(name, (0.0, 0))
                self._values[name] = (total + float(value), count + 1)

    def tell(self) -> None:
        """Log the means, if anything was decided, and start anew."""
        if self._decisions:
            parts = [f"{name} {total / count:.3g}" for name, (total, count) in self._values.items()]
            mean = self._iterations / self._decisions
            told = ", ".join([f"{self._decisions} decisions, {mean:.2f} iterations on average", *parts])
            log.info("rdvla: %s", told)
            self._clear()
