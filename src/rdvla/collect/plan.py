"""Which attempts at a task are played, so that the result does not depend on how many workers there are."""

from dataclasses import dataclass, field

from rdvla.collect.recording import Attempt
from rdvla.collect.staging import Ending
from rdvla.jobs.pool import TaskKey

_SPARE_ATTEMPTS = 10


@dataclass
class TaskPlan:
    """The attempts at one task: in order of their number, until `episodes` of them are solved.

    Attributes:
        key: suite and task id.
        episodes: demonstrations wanted.
        seed: seed of the collection.
        endings: what is settled, by attempt number.
        playing: attempt numbers that workers are at.
    """

    key: TaskKey
    episodes: int
    seed: int
    endings: dict[int, Ending]
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

    def count(self, ending: Ending) -> int:
        """Return how many attempts ended so."""
        return sum(found == ending for found in self.endings.values())

    def take(self) -> Attempt:
        """Return the first attempt that is neither settled nor being played."""
        number = 0
        while number in self.endings or number in self.playing:
            number += 1
        self.playing.add(number)
        return Attempt(*self.key, number, self.seed)

    def settle(self, number: int, ending: Ending) -> None:
        """Note how an attempt ended."""
        self.playing.discard(number)
        self.endings[number] = ending

    def put_back(self, number: int) -> None:
        """Note that an attempt has to be played again."""
        self.playing.discard(number)

    def kept(self) -> list[Attempt]:
        """Return the solved attempts that make the dataset: the `episodes` first ones."""
        solved = sorted(number for number, ending in self.endings.items() if ending == "solved")
        return [Attempt(*self.key, number, self.seed) for number in solved[: self.episodes]]
