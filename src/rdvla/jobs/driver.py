"""Hands out jobs, repeats what broke, gives up with a reason. It runs in one thread, and nobody else writes results."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from rdvla.errors import SimulatorError
from rdvla.jobs.pool import Broken, J, Played, Player, Pool, R, R_contra, Slot, TaskKey

MAX_ATTEMPTS = 3
"""How often a job is started before it is given up."""

MAX_LOST_IN_A_ROW = 3
"""Jobs given up one after the other before the driver gives up on the simulator."""

MIN_TO_SHARE = 2
"""Creating an environment costs about as much as an episode: fewer left than this are not worth another one."""

POLL_S = 1.0


class Work(Protocol[J, R_contra]):
    """What there is to do, and what to do with what comes of it."""

    def waiting(self) -> Mapping[TaskKey, int]:
        """Return how many jobs of each task can be handed out now."""
        ...

    def take(self, task: TaskKey) -> J:
        """Return the next job of a task that has one, and count it as handed out."""
        ...

    def finish(self, job: J, result: R_contra, attempt: int) -> None:
        """Keep the result of a job, which was played at its `attempt`-th start."""
        ...

    def put_back(self, job: J, message: str) -> None:
        """Note that a job broke with `message`, and has to be handed out again."""
        ...

    def give_up(self, job: J, message: str, attempts: int) -> None:
        """Note that a job broke at every one of its `attempts` starts, at the last one with `message`."""
        ...

    def show(self, playing: Sequence[J]) -> None:
        """Tell whoever watches; called about once a second and after every reply."""
        ...


def drive(
    work: Work[J, R], pool: Pool, make_player: Callable[[], Player[J, R]], *, workers: int, timeout_s: float
) -> None:
    """Play until nothing is left; all workers have ended when it returns or raises.

    Args:
        work: what to play.
        pool: where workers come from.
        make_player: called in every worker; importable by name.
        workers: how many, at least 1.
        timeout_s: a job that takes longer than this many seconds is taken for hung, and repeated.

    Raises:
        SimulatorError: several jobs in a row had to be given up.
        WorkerError: a defect in a player. Errors of `rdvla.errors` are raised as they are.
    """
    slots = pool.open(make_player, workers)
    attempts: Counter[J] = Counter()
    lost_in_a_row = 0
    try:
        while (busy := _assign(work, slots, attempts)) or any(work.waiting().values()):
            work.show([slot.job for slot in busy if slot.job is not None])
            pool.wait(busy, POLL_S)
            for slot in busy:
                job = slot.job
                assert job is not None
                match slot.receive(timeout_s):
                    case Played(result):
                        lost_in_a_row = 0
                        work.finish(job, result, attempts[job])
                    case Broken(message) if attempts[job] < MAX_ATTEMPTS:
                        work.put_back(job, message)
                    case Broken(message):
                        work.give_up(job, message, attempts[job])
                        lost_in_a_row += 1
                        if lost_in_a_row >= MAX_LOST_IN_A_ROW:
                            raise SimulatorError(
                                f"{MAX_LOST_IN_A_ROW} episodes in a row failed {MAX_ATTEMPTS} times each; the last one "
                                f"({job}): {message}"
                            )
        work.show([])
        for slot in slots:
            slot.stop()
    finally:
        for slot in slots:
            slot.kill()


def _assign(work: Work[J, R], slots: Sequence[Slot[J, R]], attempts: Counter[J]) -> list[Slot[J, R]]:
    """Give idle workers something to do; return those that are busy."""
    for slot in slots:
        if slot.job is None:
            held = {other.task for other in slots if other.job is not None and other.task is not None}
            task = choose_task(work.waiting(), slot.task, held)
            if task is not None and slot.ready:
                job = work.take(task)
                attempts[job] += 1
                slot.send(job, task)
    return [slot for slot in slots if slot.job is not None]


def choose_task(waiting: Mapping[TaskKey, int], current: TaskKey | None, held: Collection[TaskKey]) -> TaskKey | None:
    """Return the task a worker should play, so that environments are created rarely and workers finish together.

    First the one whose environment it has; then the longest that nobody works on; then the longest of somebody else,
    if enough of it is left.

    Args:
        waiting: jobs that can be handed out, by task.
        current: the task whose environment the worker has, if any.
        held: the tasks that other workers are playing.

    Returns:
        The task, or None if the worker should rest.
    """
    if current is not None and waiting.get(current):
        return current
    free = {task: count for task, count in waiting.items() if count and task not in held}
    shared = {task: count for task, count in waiting.items() if count >= MIN_TO_SHARE}
    candidates = free or shared
    return max(candidates, key=lambda task: candidates[task]) if candidates else None
