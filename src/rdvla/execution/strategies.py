"""When to ask for the next chunk, and which of the planned actions to execute.

A chunk decided from the observation of step `s` plans its action `i` for step `s + i`. Control steps are counted,
not timed: one step, one command. Whatever a strategy does with an action, executed or dropped, it says so in the
`Ledger`: every action of every chunk is accounted for exactly once.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import ConfigError, suggest
from rdvla.execution.ledger import Decision, Fate, Ledger
from rdvla.horizons import Fixed, Horizon, make_horizon


class Strategy(Protocol):
    """Decides when to ask and which action to execute. Steps are counted from 0 after every `reset`."""

    def reset(self, ledger: Ledger, step: int) -> None:
        """Start an episode; the actions still at hand are dropped as `episode_end` at `step`."""
        ...

    def wants(self, step: int) -> bool:
        """Return whether to ask for a decision at `step` (only one is asked for at a time)."""
        ...

    def waits(self, step: int) -> bool:
        """Return whether a robot should wait for the answer rather than go on without an action."""
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


def _horizon(wanted: int | str | Horizon) -> Horizon:
    if isinstance(wanted, str):
        return make_horizon(wanted)
    if isinstance(wanted, int | np.integer):
        return Fixed(int(wanted))
    if not callable(getattr(wanted, "steps", None)):
        raise ConfigError(f"horizon must be a whole number of actions, a rule or its name, found {wanted!r:.60}.")
    return wanted


class Synchronous:
    """Execute some actions, stand still while deciding, go on: what simulators and benchmarks do."""

    def __init__(self, horizon: int | str | Horizon | None = None) -> None:
        """Execute up to `horizon` of every chunk: a number >= 1, a rule or its name.

        None takes the chunk's own suggestion; a chunk without one is executed whole.

        Raises:
            ConfigError: a number below 1, an unknown name, or none of these.
        """
        self._horizon = None if horizon is None else _horizon(horizon)
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
        chunk, size = decision.chunk, len(decision.chunk.actions)
        if self._horizon is not None:
            n = self._horizon.steps(chunk.num_recurrences, size)
        else:
            n = min(chunk.n_action_steps or size, size)
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
        if not isinstance(refill_at, int) or refill_at < 1:
            raise ConfigError(f"refill_at must be a whole number of at least 1 action, found {refill_at!r:.60}.")
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
        if not isinstance(every, int) or every < 1:
            raise ConfigError(f"every must be a whole number of at least 1 step, found {every!r:.60}.")
        if not np.isfinite(decay):
            raise ConfigError(f"decay must be finite, found {decay}.")
        self._every = every
        self._decay = decay
        self._newest = list(newest)
        self._plans: list[_Plan] = []
        self._started = False

    def reset(self, ledger: Ledger, step: int) -> None:
        """Drop all plans; the first decision of the new episode is waited for."""
        for plan in self._plans:
            ledger.settle(step, plan.decision, plan.left, "episode_end")
        self._plans = []
        self._started = False

    def wants(self, step: int) -> bool:
        """Ask `every` steps after the newest decision's observation."""
        return not self._plans or step - self._plans[-1].decision.step >= self._every

    def waits(self, step: int) -> bool:
        """Wait at the start of an episode only."""
        return not self._started

    def add(self, decision: Decision, step: int, ledger: Ledger) -> None:
        """Take in one more plan.

        Raises:
            ConfigError: its actions lack a dimension of `newest`.
        """
        size, width = decision.chunk.actions.shape
        if not all(-width <= dimension < width for dimension in self._newest):
            raise ConfigError(f"newest {self._newest} must be dimensions of an action of {width} values.")
        due = min(max(0, self._planned(step) - decision.step), size)
        ledger.settle(step, decision, range(due), "already_due")
        if due < size:
            self._plans.append(_Plan(decision, list(range(due, size))))
            self._started = True

    def next(self, step: int, ledger: Ledger) -> NDArray[np.float32] | None:
        """Return the weighted mean of all plans for `step`, oldest first."""
        planned = self._planned(step)
        action = self._mean([plan for plan in self._plans if plan.reaches(planned)], planned)
        for plan in self._plans:
            index = planned - plan.decision.step
            if index in plan.left:
                plan.left.remove(index)
                ledger.settle(step, plan.decision, [index], "executed")
        over = [plan for plan in self._plans if self._is_over(plan, step)]
        for plan in over:
            ledger.settle(step, plan.decision, plan.left, "beyond_horizon")
        self._plans = [plan for plan in self._plans if plan not in over]
        return action

    def _planned(self, step: int) -> int:
        """Return the step whose plans are executed at `step`."""
        return step

    def _is_over(self, plan: "_Plan", step: int) -> bool:
        """Return whether `plan` has nothing for the steps after `step`."""
        return not plan.reaches(step + 1)

    def _mean(self, plans: Sequence["_Plan"], step: int) -> NDArray[np.float32] | None:
        if not plans:
            return None
        actions = [plan.action(step) for plan in plans]
        weights = np.exp(-self._decay * np.arange(len(plans)))
        action = np.average(np.stack(actions), axis=0, weights=weights).astype(np.float32)
        action[self._newest] = actions[-1][self._newest]
        return action


@dataclass(eq=False)
class _Plan:
    """A decision of which several are at hand, and its actions that are not accounted for yet."""

    decision: Decision
    left: list[int]

    def reaches(self, step: int) -> bool:
        return 0 <= step - self.decision.step < len(self.decision.chunk.actions)

    def action(self, step: int) -> NDArray[np.float32]:
        action: NDArray[np.float32] = self.decision.chunk.actions[step - self.decision.step]
        return action

    def opening(self, step: int) -> float:
        """How far open the gripper is to be, 0 to 1; of a gripper of which only -1 and +1 is known, those."""
        opening = self.decision.chunk.opening
        if opening is None:
            return float(self.action(step)[-1] + 1) / 2
        return float(opening[step - self.decision.step])

    def opened(self, step: int) -> float:
        """What opens the gripper, +1 or -1, as this plan's own action says; +1 where it says neither."""
        command = float(self.action(step)[-1])
        return 1.0 if command == 0 else math.copysign(1.0, command if self.opening(step) > 0.5 else -command)


class CalvinReleased(TemporalEnsembling):
    """How the released evaluation on CALVIN executes chunks of 8: blocks of ten steps, three decisions each.

    It decides at the first three steps of a block and executes means of equal weight. As released, the plans for the
    third step are executed twice, those of steps 4 to 7 one step late, and those for the eighth never. The gripper
    opens if it is more than half open in the mean, before rounding where the policy says that (`ActionChunk.opening`).
    """

    EXECUTED = (0, 1, 2, 2, 3, 4, 5, 6, 8, 9)
    """The step of the block whose plans are executed, for each of its steps."""

    def __init__(self) -> None:
        """All plans weigh the same."""
        super().__init__(decay=0.0, newest=())

    def add(self, decision: Decision, step: int, ledger: Ledger) -> None:
        """Take in one more plan.

        Raises:
            ConfigError: it is no chunk of 8, as of a policy that was trained for that evaluation.
        """
        if len(decision.chunk.actions) != 8:
            raise ConfigError(f"calvin_released executes chunks of 8 actions, found {len(decision.chunk.actions)}.")
        super().add(decision, step, ledger)

    def wants(self, step: int) -> bool:
        """Ask at the first three steps of a block."""
        return not self._plans or step % len(self.EXECUTED) < 3

    def _mean(self, plans: Sequence[_Plan], step: int) -> NDArray[np.float32] | None:
        action = super()._mean(plans, step)
        if action is not None:
            opens = np.mean([plan.opening(step) for plan in plans]) > 0.5
            action[-1] = plans[-1].opened(step) if opens else -plans[-1].opened(step)
        return action

    def _planned(self, step: int) -> int:
        place = step % len(self.EXECUTED)
        return step - place + self.EXECUTED[place]

    def _is_over(self, plan: _Plan, step: int) -> bool:
        return (step + 1) % len(self.EXECUTED) == 0


SYNCHRONOUS = "synchronous"
STRATEGIES: Mapping[str, Callable[[Horizon | None, int | None], Strategy]] = {
    SYNCHRONOUS: lambda horizon, number: Synchronous(horizon),
    "background": lambda horizon, number: Background(4 if number is None else number),
    "ensembling": lambda horizon, number: TemporalEnsembling(every=1 if number is None else number),
    "calvin_released": lambda horizon, number: CalvinReleased(),
}
WITH_NUMBER = ("background", "ensembling")


def execution_label(strategy: str, horizon: str, delay: int) -> str:
    """Return a name that tells apart all ways to execute chunks, e.g. `5` or `background:4, delay 3`."""
    label = horizon if strategy == SYNCHRONOUS else strategy
    return f"{label}, delay {delay}" if delay else label


def make_strategy(name: str, horizon: Horizon | None = None) -> Strategy:
    """Build a strategy from a name of `STRATEGIES`.

    Args:
        name: `background:6` asks when 6 actions are left, `ensembling:2` at every second step.
        horizon: how much of a chunk `synchronous` executes.

    Raises:
        ConfigError: an unknown name, a number that is none or where none belongs.
    """
    kind, colon, number = name.partition(":")
    if kind not in STRATEGIES:
        raise ConfigError(f"unknown strategy '{kind}'.{suggest(kind, STRATEGIES)}")
    if colon and (kind not in WITH_NUMBER or not number.isdecimal()):
        raise ConfigError(f"strategy '{name}': a number of control steps belongs to {' and '.join(WITH_NUMBER)} only.")
    return STRATEGIES[kind](horizon, int(number) if colon else None)
