"""Worker processes: what is played, what breaks, what hangs, what is a mistake."""

import os
import time

import pytest

from rdvla.errors import ConfigError, MissingExtraError, ServeError, SimulatorError
from rdvla.jobs.pool import Broken, Played, WorkerError
from rdvla.jobs.process import ProcessPool

FOREVER = 600.0


class RefusedError(ServeError):
    """A kind of error that another room declares."""


class FakePlayer:
    """Does what the job says."""

    def __init__(self):
        self.jobs = []

    def play(self, job):
        self.jobs.append(job)
        if job == "die":
            os._exit(3)
        if job == "hang":
            time.sleep(FOREVER)
        if job == "break":
            raise SimulatorError("the physics diverged")
        if job == "mistake":
            raise ConfigError("seed is wrong")
        if job == "missing":
            raise MissingExtraError("mujoco", "libero")
        if job == "refused":
            raise RefusedError("not now")
        if job == "defect":
            raise ZeroDivisionError("a defect")
        return tuple(self.jobs)

    def close(self):
        pass


@pytest.fixture
def worker():
    (worker,) = ProcessPool().open(FakePlayer, 1)
    yield worker
    worker.kill()


def play(worker, job, timeout_s=FOREVER):
    worker.send(job, ("suite", 0))
    while (reply := worker.receive(timeout_s)) is None:
        ProcessPool().wait([worker], 0.1)
    return reply


def test_a_process_is_kept_until_it_breaks(worker):
    assert play(worker, "a") == Played(("a",))
    assert worker.task == ("suite", 0)
    assert play(worker, "b") == Played(("a", "b"))
    assert play(worker, "break") == Broken("the physics diverged")
    assert (worker.job, worker.task) == (None, None)
    assert play(worker, "c") == Played(("c",))
    assert play(worker, "die") == Broken("the worker process died (exit code 3)")
    worker.stop()


def test_a_hung_process_is_ended(worker):
    assert play(worker, "hang", timeout_s=0.2) == Broken("the episode was still running after 0.2 s")
    assert play(worker, "a") == Played(("a",))


@pytest.mark.parametrize(
    ("job", "kind", "message"),
    [
        ("mistake", ConfigError, "^seed is wrong$"),
        ("missing", MissingExtraError, "^mujoco is not installed"),
        ("refused", ServeError, "^not now$"),
        ("defect", WorkerError, "(?s)ZeroDivisionError: a defect.*in play"),
    ],
)
def test_mistakes_and_defects_are_raised_in_the_parent(worker, job, kind, message):
    with pytest.raises(kind, match=message):
        play(worker, job)


def test_a_worker_killed_in_the_middle_of_its_reply_costs_its_episode_only(worker, monkeypatch):
    assert play(worker, "one").result == ("one",)
    worker.send("hang", ("suite", 0))

    def cut_off():
        worker._process.kill()
        raise OSError("got end of file during message")

    monkeypatch.setattr(worker._connection, "poll", lambda: True)
    monkeypatch.setattr(worker._connection, "recv", cut_off)
    assert "the worker process died" in worker.receive(FOREVER).message
    assert worker.job is None
