"""The account of all actions: what every decision planned, and what became of it."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rdvla.types import ActionChunk

Fate = Literal["executed", "beyond_horizon", "already_due", "superseded", "late", "alarm", "episode_end"]
KEPT = 100_000


@dataclass(frozen=True)
class Decision:
    """A chunk and when it was asked for.

    Attributes:
        number: rises by one with every request.
        step: control step at which its observation was taken.
        chunk: what the policy decided.
    """

    number: int
    step: int
    chunk: ActionChunk


@dataclass(frozen=True)
class Entry:
    """What became of one action.

    Attributes:
        step: control step at which that was settled.
        decision: number of the decision the action belongs to.
        index: position in its chunk.
        fate: `executed`; or dropped: `beyond_horizon` (the strategy leaves it out), `already_due` (planned for a step
            that had passed when the chunk came), `superseded` (a newer chunk came), `late` (the whole answer came
            after its deadline), `alarm` (the robot is held still), `episode_end`.
    """

    step: int
    decision: int
    index: int
    fate: Fate


class Ledger:
    """The account of all actions.

    Attributes:
        entries: the last 100,000, oldest first.
        counts: how many actions met each fate.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.entries: deque[Entry] = deque(maxlen=KEPT)
        self.counts: Counter[Fate] = Counter()

    def settle(self, step: int, decision: Decision, indices: Sequence[int] | range, fate: Fate) -> None:
        """Record the `fate` of the actions at `indices` of a decision."""
        self.entries.extend(Entry(step, decision.number, index, fate) for index in indices)
        self.counts[fate] += len(indices)
