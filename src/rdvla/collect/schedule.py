"""Which attempt a worker plays next, so that the result does not depend on how many workers there are."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from rdvla.collect.recording import Attempt
from rdvla.collect.staging import Outcome
from rdvla.jobs.process import TaskKey

_SPARE_ATTEMPTS = 10
_WORTH_ANOTHER_ENV = 3
"""Starting an environment costs about as much as an episode: fewer left than this are left to one worker."""


@dataclass
class TaskPlan:
    """The attempts at one task: in order of their number, until `episodes` of them are solved.

    Attributes:
        key: suite and task id.
        episodes: demonstrations wanted.
        seed: seed of the collection.
        outcomes: what is settled, by attempt number.
        playing: attempt numbers that workers are at.
    """

    key: TaskKey
    episodes: int
    seed: int
    outcomes: dict[int, Outcome]
    playing: set[int] = field(default_factory=set)

    @property
    def missing(self) -> int:
        """Demonstrations still to be played, those being played not counted."""
        return max(self.episodes - self.count("solved") - len(self.playing), 0)

    @property
    def given_up(self) -> bool:
        """Whether so many attempts failed that the expert evidently cannot do the task."""
        return self.count("failed") + self.count("error") > self.episodes + _SPARE_ATTEMPTS

    @property
    def open(self) -> int:
        """How many attempts can be handed out now."""
        return 0 if self.given_up else self.missing

    def count(self, outcome: Outcome) -> int:
        """Return how many attempts ended in `outcome`."""
        return sum(found == outcome for found in self.outcomes.values())

    def take(self) -> Attempt:
        """Return the first attempt that is neither settled nor being played."""
        number = 0
        while number in self.outcomes or number in self.playing:
            number += 1
        self.playing.add(number)
        return Attempt(*self.key, number, self.seed)

    def settle(self, number: int, outcome: Outcome) -> None:
        """Note how an attempt ended."""
        self.playing.discard(number)
        self.outcomes[number] = outcome

    def put_back(self, number: int) -> None:
        """Note that an attempt has to be played again."""
        self.playing.discard(number)

    def kept(self) -> list[Attempt]:
        """Return the solved attempts that make the dataset: the `episodes` first ones."""
        solved = sorted(number for number, outcome in self.outcomes.items() if outcome == "solved")
        return [Attempt(*self.key, number, self.seed) for number in solved[: self.episodes]]


class Schedule:
    """The plans of all tasks."""

    def __init__(self, plans: Iterable[TaskPlan]) -> None:
        self.plans: Mapping[TaskKey, TaskPlan] = {plan.key: plan for plan in plans}

    def next(self, current: TaskKey | None, held: Collection[TaskKey]) -> Attempt | None:
        """Take the next attempt for a worker, or None if there is nothing for it.

        First the task whose environment it has; then the first task that nobody holds; then help with the largest.

        Args:
            current: the task whose environment the worker has, if any.
            held: the tasks whose environments the other workers have.
        """
        waiting = [plan for plan in self.plans.values() if plan.open]
        mine = [plan for plan in waiting if plan.key == current]
        free = [plan for plan in waiting if plan.key not in held]
        large = [plan for plan in waiting if plan.open >= _WORTH_ANOTHER_ENV]
        for plans in (mine, free):
            if plans:
                return plans[0].take()
        return max(large, key=lambda plan: plan.open).take() if large else None
