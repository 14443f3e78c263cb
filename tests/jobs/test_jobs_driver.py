"""The driver: who plays what, what is repeated, when it gives up. Workers are made up, and nothing depends on time."""

from collections import Counter, deque

import pytest

from rdvla.errors import ConfigError, SimulatorError
from rdvla.jobs.driver import choose_task, drive
from rdvla.jobs.pool import Broken, Played

A, B, C = ("a", 0), ("b", 0), ("c", 0)


class FakeSlot:
    """Replies at the first look; jobs named in `breaks` break as often as it says."""

    def __init__(self, pool):
        self.pool, self.job, self.task, self.sent = pool, None, None, []

    @property
    def ready(self):
        return self.pool.slots.index(self) < self.pool.running

    def send(self, job, task):
        self.job, self.task = job, task
        self.sent.append(job)
        if task not in self.pool.envs.setdefault(id(self), []):
            self.pool.envs[id(self)].append(task)

    def receive(self, timeout_s):
        job, self.job = self.job, None
        if isinstance(self.pool.breaks.get(job), Exception):
            raise self.pool.breaks[job]
        if self.pool.breaks[job] > 0:
            self.pool.breaks[job] -= 1
            self.task = None
            return Broken(f"{job} broke")
        return Played(job.upper())

    def stop(self):
        self.pool.stopped += 1

    def kill(self):
        self.pool.killed += 1


class FakePool:
    def __init__(self, **breaks):
        self.breaks, self.envs, self.stopped, self.killed = Counter(breaks), {}, 0, 0
        self.running = 99  # how many of the workers have started
        self.waits = []

    def open(self, make_player, count):
        self.slots = [FakeSlot(self) for _ in range(count)]
        return self.slots

    def wait(self, busy, timeout_s):
        self.waits.append(len(busy))
        if not busy:
            self.running += 1


class FakeWork:
    """Jobs `a1`, `a2`, `b1`, ... by the letter of their task."""

    def __init__(self, *jobs):
        self.queues, self.log, self.shown = {}, [], []
        for job in jobs:
            self.queues.setdefault((job[0], 0), deque()).append(job)

    def waiting(self):
        return {task: len(queue) for task, queue in self.queues.items()}

    def take(self, task):
        return self.queues[task].popleft()

    def put_back(self, job, message):
        self.log.append(("put back", job, message))
        self.queues[(job[0], 0)].appendleft(job)

    def finish(self, job, result, attempt):
        self.log.append(("finish", job, result, attempt))

    def give_up(self, job, message, attempts):
        self.log.append(("give up", job, message, attempts))

    def show(self, playing):
        self.shown.append(list(playing))


def play(work, pool, workers=1):
    drive(work, pool, FakeSlot, workers=workers, timeout_s=1.0)
    return work.log


def test_everything_is_played_once_and_the_workers_end():
    work, pool = FakeWork("a1", "a2", "b1"), FakePool()
    assert [entry[:2] for entry in play(work, pool, workers=2)] == [("finish", job) for job in ("a1", "b1", "a2")]
    assert (pool.stopped, pool.killed) == (2, 2)
    assert work.shown[0] == ["a1", "b1"]
    assert work.shown[-1] == []


def test_a_worker_keeps_its_environment():
    pool = FakePool()
    play(FakeWork("a1", "b1", "a2", "b2", "a3", "b3"), pool, workers=2)
    assert sorted(pool.envs.values()) == [[A], [B]]


def test_what_breaks_is_repeated_and_costs_nothing_else():
    work, pool = FakeWork("a1", "a2"), FakePool(a1=2)
    assert play(work, pool) == [
        ("put back", "a1", "a1 broke"),
        ("put back", "a1", "a1 broke"),
        ("finish", "a1", "A1", 3),
        ("finish", "a2", "A2", 1),
    ]


def test_what_breaks_every_time_is_given_up_and_the_rest_is_played():
    log = play(FakeWork("a1", "a2"), FakePool(a1=3))
    assert log[2:] == [("give up", "a1", "a1 broke", 3), ("finish", "a2", "A2", 1)]


def test_a_simulator_that_never_works_ends_the_run():
    work, pool = FakeWork("a1", "a2", "a3", "a4"), FakePool(a1=9, a2=9, a3=9)
    with pytest.raises(SimulatorError, match=r"3 episodes in a row failed 3 times each; the last one \(a3\): a3 broke"):
        play(work, pool)
    assert [entry[1] for entry in work.log if entry[0] == "give up"] == ["a1", "a2", "a3"]
    assert (pool.stopped, pool.killed) == (0, 1)


def test_one_that_works_in_between_shows_that_the_simulator_does():
    log = play(FakeWork("a1", "a2", "a3", "a4"), FakePool(a1=9, a2=9, a4=9))
    assert [entry[:2] for entry in log if entry[0] != "put back"] == [
        ("give up", "a1"),
        ("give up", "a2"),
        ("finish", "a3"),
        ("give up", "a4"),
    ]


def test_other_errors_are_raised_and_all_workers_ended():
    pool = FakePool()
    pool.breaks["a1"] = ConfigError("there is no such state")
    with pytest.raises(ConfigError, match="no such state"):
        play(FakeWork("a1", "b1"), pool, workers=2)
    assert (pool.stopped, pool.killed) == (0, 2)


def test_nothing_to_do_starts_nobody():
    pool = FakePool()
    play(FakeWork(), pool, workers=3)
    assert all(not slot.sent for slot in pool.slots)


def test_only_workers_that_have_started_are_given_jobs():
    pool = FakePool()
    pool.running = 1
    assert [entry[:2] for entry in play(FakeWork("a1", "b1", "a2"), pool, workers=2)] == [
        ("finish", job) for job in ("a1", "a2", "b1")
    ]
    assert pool.slots[1].sent == []


def test_while_no_worker_has_started_the_driver_waits():
    pool = FakePool()
    pool.running = 0
    assert [entry[:2] for entry in play(FakeWork("a1"), pool)] == [("finish", "a1")]
    assert pool.waits == [0, 1]


def test_the_choice_of_a_task():
    waiting = {A: 1, B: 3, C: 2}
    assert choose_task(waiting, A, {B}) == A  # its own environment
    assert choose_task(waiting, None, set()) == B  # the longest of nobody
    assert choose_task(waiting, None, {B}) == C
    assert choose_task({A: 1, B: 3}, None, {A, B}) == B  # helps with the longest
    assert choose_task({A: 1, B: 1}, None, {A, B}) is None  # one left is not worth an environment
    assert choose_task({A: 0}, A, set()) is None
