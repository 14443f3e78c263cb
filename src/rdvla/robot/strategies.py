"""How chunks of actions become one action per control step.

A chunk decided from the observation of step `s` plans its action `i` for step `s + i`. Control steps are counted,
not timed: one step, one command. Whatever a strategy does with an action, executed or dropped, it says so in the
`Ledger`: every action of every chunk is accounted for exactly once.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import ConfigError
from rdvla.types import ActionChunk

Fate = Literal["executed", "beyond_horizon", "already_due", "superseded", "late", "episode_end"]
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
        fate: `executed`; or dropped: `beyond_horizon` (more actions than a synchronous strategy executes),
            `already_due` (planned for a step that had passed when the chunk came), `superseded` (a newer chunk
            came), `late` (the whole answer came after its deadline), `episode_end`.
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


class Strategy(Protocol):
    """Decides when to ask and which action to execute."""

    def reset(self, ledger: Ledger, step: int) -> None:
        """Start an episode; the actions still at hand are dropped as `episode_end` at `step`."""
        ...

    def wants(self, step: int) -> bool:
        """Return whether to ask for a decision at `step` (the loop asks only one at a time)."""
        ...

    def waits(self, step: int) -> bool:
        """Return whether the loop should wait for the answer rather than go on without an action."""
        ...

    def add(self, decision: Decision, step: int, ledger: Ledger) -> None:
        """Take in an answer that came in time; `step` is the next one to be executed."""
        ...

    def next(self, step: int, ledger: Ledger) -> NDArray[np.float32] | None:
        """Return the action for `step`, or None if there is none."""
        ...


class _Queue:
    """The actions of one decision that are still to be executed, in order."""

    def __init__(self) -> None:
        self.decision: Decision | None = None
        self.left: deque[int] = deque()

    def replace(self, decision: Decision, indices: Sequence[int] | range, step: int, ledger: Ledger) -> None:
        self.drop(step, ledger, "superseded")
        self.decision, self.left = decision, deque(indices)

    def drop(self, step: int, ledger: Ledger, fate: Fate) -> None:
        if self.decision is not None and self.left:
            ledger.settle(step, self.decision, tuple(self.left), fate)
        self.left.clear()

    def pop(self, step: int, ledger: Ledger) -> NDArray[np.float32] | None:
        if self.decision is None or not self.left:
            return None
        index = self.left.popleft()
        ledger.settle(step, self.decision, [index], "executed")
        action: NDArray[np.float32] = self.decision.chunk.actions[index]
        return action


class Synchronous:
    """Execute `n` actions, stand still while deciding, go on: what simulators and benchmarks do."""

    def __init__(self, n: int | None = None) -> None:
        """Execute `n` >= 1 actions of every chunk; None takes the chunk's own suggestion (else the whole chunk)."""
        if n is not None and n < 1:
            raise ConfigError(f"a chunk must yield at least 1 action, found {n}.")
        self._n = n
        self._queue = _Queue()

    def reset(self, ledger: Ledger, step: int) -> None:
        """Drop what is left."""
        self._queue.drop(step, ledger, "episode_end")

    def wants(self, step: int) -> bool:
        """Ask when nothing is left."""
        return not self._queue.left

    def waits(self, step: int) -> bool:
        """Wait whenever nothing is left."""
        return not self._queue.left

    def add(self, decision: Decision, step: int, ledger: Ledger) -> None:
        """Queue the first actions of the chunk, all of them still to come: the robot stood still."""
        size = len(decision.chunk.actions)
        n = min(self._n or decision.chunk.n_action_steps or size, size)
        ledger.settle(step, decision, range(n, size), "beyond_horizon")
        self._queue.replace(decision, range(n), step, ledger)

    def next(self, step: int, ledger: Ledger) -> NDArray[np.float32] | None:
        """Return the next queued action."""
        return self._queue.pop(step, ledger)


class Background:
    """Ask for the next chunk while this one runs; when it comes, skip its actions that are already due.

    The robot never stops for a decision, as long as one takes no more than `refill_at` control steps. At the seam
    the action may jump; see `ActionLimits.max_change` and `TemporalEnsembling`.
    """

    def __init__(self, refill_at: int = 4) -> None:
        """Ask when `refill_at` >= 1 or fewer actions are left."""
        if refill_at < 1:
            raise ConfigError(f"refill_at must be at least 1 action, found {refill_at}.")
        self._refill_at = refill_at
        self._queue = _Queue()
        self._started = False

    def reset(self, ledger: Ledger, step: int) -> None:
        """Drop what is left; the first decision of the new episode is waited for."""
        self._queue.drop(step, ledger, "episode_end")
        self._started = False

    def wants(self, step: int) -> bool:
        """Ask when few actions are left."""
        return len(self._queue.left) <= self._refill_at

    def waits(self, step: int) -> bool:
        """Wait at the start of an episode only."""
        return not self._started

    def add(self, decision: Decision, step: int, ledger: Ledger) -> None:
        """Switch to the new chunk at the action planned for `step`; a chunk that is wholly past is dropped."""
        size = len(decision.chunk.actions)
        due = min(max(0, step - decision.step), size)
        ledger.settle(step, decision, range(due), "already_due")
        if due < size:
            self._queue.replace(decision, range(due, size), step, ledger)
            self._started = True

    def next(self, step: int, ledger: Ledger) -> NDArray[np.float32] | None:
        """Return the action planned for `step`."""
        return self._queue.pop(step, ledger)


class TemporalEnsembling:
    """Average what all chunks at hand plan for a step, as ACT does (arXiv 2304.13705): smooth, slow to react.

    With the oldest plan as number 0, plan k weighs exp(-`decay` k). Dimensions in `newest` are not averaged but
    taken from the newest plan: an open and a closed gripper have no meaningful mean.
    """

    def __init__(self, *, every: int = 1, decay: float = 0.01, newest: Sequence[int] = (-1,)) -> None:
        """Ask every `every` >= 1 control steps (as far as answers keep up)."""
        if every < 1 or not np.isfinite(decay):
            raise ConfigError(f"every must be at least 1 and decay finite, found {every} and {decay}.")
        self._every = every
        self._decay = decay
        self._newest = list(newest)
        self._decisions: list[Decision] = []

    def reset(self, ledger: Ledger, step: int) -> None:
        """Drop all plans."""
        for decision in self._decisions:
            remaining = range(max(0, step - decision.step), len(decision.chunk.actions))
            ledger.settle(step, decision, remaining, "episode_end")
        self._decisions = []

    def wants(self, step: int) -> bool:
        """Ask `every` steps after the newest decision's observation."""
        return not self._decisions or step - self._decisions[-1].step >= self._every

    def waits(self, step: int) -> bool:
        """Wait at the start of an episode only."""
        return not self._decisions and step == 0

    def add(self, decision: Decision, step: int, ledger: Ledger) -> None:
        """Take in one more plan."""
        size = len(decision.chunk.actions)
        due = min(max(0, step - decision.step), size)
        ledger.settle(step, decision, range(due), "already_due")
        if due < size:
            self._decisions.append(decision)

    def next(self, step: int, ledger: Ledger) -> NDArray[np.float32] | None:
        """Return the weighted mean of all plans for `step`, oldest first."""
        plans = [decision.chunk.actions[step - decision.step] for decision in self._decisions]
        if not plans:
            return None
        for decision in self._decisions:
            ledger.settle(step, decision, [step - decision.step], "executed")
        self._decisions = [d for d in self._decisions if step + 1 - d.step < len(d.chunk.actions)]
        weights = np.exp(-self._decay * np.arange(len(plans)))
        action = np.average(np.stack(plans), axis=0, weights=weights).astype(np.float32)
        action[self._newest] = plans[-1][self._newest]
        return action
