"""Who plays which episode next, so that environments are created rarely and workers finish together."""

from collections import deque
from collections.abc import Collection, Iterable

from rdvla.eval.protocol import Job
from rdvla.jobs.process import TaskKey

MIN_TO_STEAL = 2
"""Creating an environment costs about as much as an episode: fewer left than this are not worth another one."""


def task_key(job: Job) -> TaskKey:
    """Return suite and task id: jobs with the same key share an environment."""
    return (job.task.suite, job.task.task_id)


class Schedule:
    """The episodes still to play, by task."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._queues: dict[TaskKey, deque[Job]] = {}
        for job in jobs:
            self._queues.setdefault(task_key(job), deque()).append(job)

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def next(self, current: TaskKey | None, held: Collection[TaskKey]) -> Job | None:
        """Take the next episode for a worker.

        First the rest of the task whose environment the worker has; then the longest task that nobody works on;
        then the end of the longest task of somebody else, if enough of it is left.

        Args:
            current: the task whose environment the worker has, if any.
            held: the tasks that other workers are playing.

        Returns:
            The episode, removed from the schedule, or None if the worker should rest.
        """
        if current is not None and self._queues.get(current):
            return self._queues[current].popleft()
        waiting = {key: queue for key, queue in self._queues.items() if queue}
        free = [key for key in waiting if key not in held]
        if free:
            return waiting[max(free, key=lambda key: len(waiting[key]))].popleft()
        if waiting:
            longest = max(waiting.values(), key=len)
            if len(longest) >= MIN_TO_STEAL:
                return longest.pop()
        return None

    def put_back(self, job: Job) -> None:
        """Return an episode that was not finished; it is the next of its task."""
        self._queues[task_key(job)].appendleft(job)
