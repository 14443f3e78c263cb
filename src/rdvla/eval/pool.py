"""The worker processes as seen from the parent: start, feed, listen, notice death, restart."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from rdvla.eval.protocol import Job
from rdvla.eval.schedule import TaskKey, task_key
from rdvla.eval.worker import Finished, Reply, WorkerSettings, worker_main

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS")
"""Threads of numpy, torch and Mesa's software renderer: one each, since every worker has a core of its own."""


@dataclass(frozen=True)
class Died:
    """A worker process ended in the middle of an episode, or was ended because it hung."""

    message: str


class Worker:
    """One slot of the pool: a process, replaced by a new one whenever it breaks.

    Attributes:
        job: the episode being played, or None.
        task: the task whose environment the process has, or None.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._started = 0.0
        self.job: Job | None = None
        self.task: TaskKey | None = None

    def send(self, job: Job, attempt: int) -> None:
        """Have an episode played."""
        if self._process is None:
            self._start()
        assert self._connection is not None
        self.job, self.task, self._started = job, task_key(job), time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):  # it died while idle; `receive` reports that
            self._connection.send(job)
            self._connection.send(attempt)

    def receive(self, timeout_s: float) -> Reply | Died | None:
        """Return what became of the episode, or None if it is still being played.

        Args:
            timeout_s: end a process that has played one episode for this long.
        """
        assert self._connection is not None
        assert self._process is not None
        reply: Reply | Died
        try:
            if self._connection.poll():
                reply = self._connection.recv()
            elif time.monotonic() - self._started > timeout_s:
                reply = Died(f"the episode was still running after {timeout_s:g} s")
            else:
                return None
        except (EOFError, ConnectionResetError):
            self._process.join(5)
            reply = Died(f"the worker process died ({_describe_exit(self._process.exitcode)})")
        self.job = None
        if not isinstance(reply, Finished):
            self.kill()
        return reply

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=worker_main, args=(theirs, self._settings), daemon=True)
        with _single_threaded():
            process.start()
        theirs.close()
        self._process, self._connection = process, ours

    @property
    def waitable(self) -> Connection:
        """Return what becomes ready when the worker replies or dies."""
        assert self._connection is not None
        return self._connection

    def stop(self) -> None:
        """Let an idle process close its environment and end."""
        if self._process is not None and self._connection is not None:
            with suppress(BrokenPipeError, ConnectionResetError):  # already gone
                self._connection.send(None)
            self._process.join(10)
        self.kill()

    def kill(self) -> None:
        """End the process at once; the next `send` starts a new one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process, self._connection, self.task = None, None, None


def wait_for_any(workers: list[Worker], timeout_s: float) -> None:
    """Wait until one of the busy `workers` replies or dies, at most `timeout_s`."""
    wait([worker.waitable for worker in workers], timeout_s)


def _describe_exit(exitcode: int | None) -> str:
    if exitcode is None:
        return "it closed its pipe"
    return f"signal {-exitcode}" if exitcode < 0 else f"exit code {exitcode}"


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Give processes started inside one thread each, unless the user set another number."""
    added = [name for name in THREAD_VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
