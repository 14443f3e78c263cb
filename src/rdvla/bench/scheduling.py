"""How throughput grows with the number of workers: the real driver, a made-up clock, recorded episode lengths.

Nothing is played. A simulated worker takes as long as the episode did, plus the start of its process and policy, plus
the start of an environment whenever the task changes. What is measured is what the driver decides: who plays what, how
often environments start, how long workers rest at the end.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import numpy as np

from rdvla.bench.table import Table
from rdvla.errors import ConfigError
from rdvla.eval.records import EpisodeRecord, read_records
from rdvla.jobs.driver import drive
from rdvla.jobs.pool import Broken, J, Played, Player, R, Slot, TaskKey


@dataclass(frozen=True)
class StartUpCosts:
    """What a worker spends beside playing, in seconds.

    Attributes:
        worker_s: its first start: process, imports, policy.
        env_s: the start of an environment.
    """

    worker_s: float = 8.0
    env_s: float = 10.0


@dataclass(frozen=True)
class TimedEpisode:
    """An episode that takes `seconds`, resetting included."""

    task: TaskKey
    number: int
    seconds: float


def recorded_episodes(runs: Sequence[Path], per_task: int | None, seed: int) -> list[TimedEpisode]:
    """Return episodes as long as those recorded in evaluation folders.

    Args:
        runs: folders of `rdvla eval`.
        per_task: so many of each task, drawn from its recorded lengths with `seed`; None takes each once.
        seed: see `per_task`.

    Raises:
        RecordError: a folder holds no evaluation.
        ConfigError: no episode was played in any.
    """
    lengths: dict[TaskKey, list[float]] = defaultdict(list)
    for run in runs:
        for record in read_records(run):
            if isinstance(record, EpisodeRecord):
                lengths[(record.suite, record.task_id)].append(record.wall_s)
    if not lengths:
        raise ConfigError("no episode was played in these evaluations.")
    rng = np.random.default_rng(seed)
    return [
        TimedEpisode(task, number, float(seconds))
        for task, found in lengths.items()
        for number, seconds in enumerate(found if per_task is None else rng.choice(found, per_task))
    ]


def measure_scheduling(episodes: Sequence[TimedEpisode], workers: Sequence[int], costs: StartUpCosts) -> Table:
    """Return a row per number of workers: time, throughput, speed-up over one worker, share of time in episodes."""
    played_s = sum(episode.seconds for episode in episodes)
    alone = simulate(episodes, 1, costs).now
    rows = []
    for count in workers:
        pool = simulate(episodes, count, costs)
        hours = pool.now / 3600
        busy = played_s / (pool.now * count)
        rows.append((count, hours, len(episodes) / hours, alone / pool.now, busy, pool.environments))
    columns = ("workers", "hours", "episodes/h", "speed-up", "in episodes", "environments")
    tasks = len({episode.task for episode in episodes})
    title = (
        f"{len(episodes)} episodes of {tasks} tasks, {played_s / len(episodes):.1f} s each on average; "
        f"{costs.worker_s:g} s to start a worker, {costs.env_s:g} s an environment (simulated)"
    )
    return Table(title, columns, tuple(rows))


def simulate(episodes: Sequence[TimedEpisode], workers: int, costs: StartUpCosts) -> "SimulatedPool":
    """Return the pool after `workers` workers have played everything; its `now` is how long that took."""
    pool = SimulatedPool(costs)
    drive(_Work(episodes), pool, _nobody, workers=workers, timeout_s=float("inf"))
    return pool


class SimulatedPool:
    """A `Pool` whose workers only take time.

    Attributes:
        now: seconds since the start.
        environments: how many were started.
    """

    def __init__(self, costs: StartUpCosts) -> None:
        """Start the clock at 0."""
        self.now = 0.0
        self.environments = 0
        self.costs = costs

    def open(self, make_player: Callable[[], Player[J, R]], count: int) -> "Sequence[SimulatedSlot[J, R]]":
        """Prepare `count` workers."""
        return [SimulatedSlot(self) for _ in range(count)]

    def wait(self, busy: Sequence[Slot[Any, Any]], timeout_s: float) -> None:
        """Move the clock to where the first of them is through."""
        self.now = min(slot.ends for slot in busy if isinstance(slot, SimulatedSlot))


class SimulatedSlot(Generic[J, R]):
    """A `Slot` that is through when the clock says so."""

    ready = True

    def __init__(self, pool: SimulatedPool) -> None:
        """Prepare a worker of `pool`."""
        self._pool = pool
        self.job: J | None = None
        self.task: TaskKey | None = None
        self.ends = 0.0

    def send(self, job: J, task: TaskKey) -> None:
        """Take as long as the episode, and what has to be started for it."""
        assert isinstance(job, TimedEpisode)
        costs = self._pool.costs
        starting_s = costs.worker_s if self.task is None else 0.0
        if task != self.task:
            starting_s += costs.env_s
            self._pool.environments += 1
        self.job, self.task = job, task
        self.ends = self._pool.now + starting_s + job.seconds

    def receive(self, timeout_s: float) -> Played[R] | Broken | None:
        """Return the episode's length if it is through."""
        if self._pool.now < self.ends:
            return None
        self.job = None
        return Played(None)  # type: ignore[arg-type]  # there is no result to speak of

    def stop(self) -> None:
        """Nothing runs."""

    def kill(self) -> None:
        """Nothing runs."""


class _Work:
    """Every episode once."""

    def __init__(self, episodes: Sequence[TimedEpisode]) -> None:
        self._queues: dict[TaskKey, deque[TimedEpisode]] = defaultdict(deque)
        for episode in episodes:
            self._queues[episode.task].append(episode)

    def waiting(self) -> Mapping[TaskKey, int]:
        return {task: len(queue) for task, queue in self._queues.items()}

    def take(self, task: TaskKey) -> TimedEpisode:
        return self._queues[task].popleft()

    def finish(self, job: TimedEpisode, result: None, attempt: int) -> None:
        """Nothing to keep."""

    def put_back(self, job: TimedEpisode, message: str) -> None:
        raise AssertionError("a simulated worker never breaks")

    def give_up(self, job: TimedEpisode, message: str, attempts: int) -> None:
        raise AssertionError("a simulated worker never breaks")

    def show(self, playing: Sequence[TimedEpisode]) -> None:
        """Nobody watches."""


def _nobody() -> Player[TimedEpisode, None]:
    raise AssertionError("nothing is played")
