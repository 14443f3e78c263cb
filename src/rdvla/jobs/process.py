"""Processes that play episodes: one environment each, replaced when a simulator crashes or hangs.

The parent holds `Worker`s and never an environment. What a process does with a job is up to its `Player`.
"""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, Protocol, TypeVar

from rdvla import errors
from rdvla.errors import RDVLAError, SimulatorError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS")
"""Threads of numpy, torch and Mesa's software renderer: one each, since every worker has a core of its own."""

EPISODE_TIMEOUT_S = 1800.0
"""Default: an episode that takes longer, the start of its environment included, is taken for hung."""

TaskKey = tuple[str, int]
"""Suite and task id: episodes with the same key share an environment."""


J = TypeVar("J")
R = TypeVar("R")
J_contra = TypeVar("J_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class WorkerError(Exception):
    """Something that is not the user's fault was raised in a worker; the message holds its traceback."""


class Player(Protocol[J_contra, R_co]):
    """What a worker process does: plays the jobs it is given, keeping the environment of the last one."""

    def play(self, job: J_contra) -> R_co:
        """Play one episode and return what came of it.

        Raises:
            SimulatorError: the simulator broke; the episode may be repeated in a new process.
        """
        ...

    def close(self) -> None:
        """Release the environment."""
        ...


@dataclass(frozen=True)
class Played(Generic[R]):
    """An episode was played, whether it was solved or not."""

    result: R


@dataclass(frozen=True)
class Broken:
    """The simulator raised, or its process died or hung: the episode may be repeated."""

    message: str


@dataclass(frozen=True)
class _Failed:
    """Something else raised; `error` names its kind in `rdvla.errors`, or is None (`message` is a traceback)."""

    error: str | None
    message: str


class Worker(Generic[J, R]):
    """One slot of a pool: a process, replaced by a new one whenever it breaks.

    Attributes:
        job: the episode being played, or None.
        task: the task whose environment the process has, or None.
    """

    def __init__(self, make_player: Callable[[], Player[J, R]]) -> None:
        """Prepare a slot; the process starts with the first job.

        Args:
            make_player: called in the process; a function or class importable by name, or a `partial` of one.
        """
        self._make_player = make_player
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._started = 0.0
        self.job: J | None = None
        self.task: TaskKey | None = None

    def send(self, job: J, task: TaskKey) -> None:
        """Have an episode of `task` played."""
        if self._connection is None:
            self._start()
        assert self._connection is not None
        self.job, self.task, self._started = job, task, time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):  # it died while idle; `receive` reports that
            self._connection.send(job)

    def receive(self, timeout_s: float) -> Played[R] | Broken | None:
        """Return what became of the episode, or None if it is still being played.

        Args:
            timeout_s: end a process that has played one episode, its own start included, for this long.

        Raises:
            RDVLAError: the player raised it.
            WorkerError: the player raised something else.
        """
        assert self._connection is not None
        assert self._process is not None
        reply: Any
        try:
            if self._connection.poll():
                reply = self._connection.recv()
            elif time.monotonic() - self._started > timeout_s:
                reply = Broken(f"the episode was still running after {timeout_s:g} s")
            else:
                return None
        except (EOFError, ConnectionResetError):
            self._process.join(5)
            reply = Broken(f"the worker process died ({_describe_exit(self._process.exitcode)})")
        if isinstance(reply, _Failed):
            raise _rebuilt(reply)
        self.job = None
        if isinstance(reply, Broken):
            self.kill()
            return reply
        result: Played[R] = reply
        return result

    @property
    def waitable(self) -> Connection:
        """What becomes ready when the worker replies or dies."""
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
        self._process = self._connection = self.task = self.job = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker_main, args=(theirs, self._make_player), daemon=True)
        with _single_threaded():
            process.start()
        theirs.close()
        self._process, self._connection = process, ours


def wait_for_any(workers: Sequence[Worker[Any, Any]], timeout_s: float) -> None:
    """Wait until one of the busy `workers` replies or dies, at most `timeout_s`."""
    wait([worker.waitable for worker in workers], timeout_s)


def _worker_main(connection: Connection, make_player: Callable[[], Player[Any, Any]]) -> None:
    """Play the jobs that arrive on `connection` until None arrives or the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    player = make_player()
    try:
        while (job := connection.recv()) is not None:
            connection.send(_reply(player, job))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent was killed; there is nobody to report to
    finally:
        player.close()


def _reply(player: Player[Any, Any], job: object) -> Played[Any] | Broken | _Failed:
    try:
        return Played(player.play(job))
    except SimulatorError as error:
        return Broken(str(error))
    except RDVLAError as error:
        kind = next(each for each in type(error).__mro__ if each.__module__ == errors.__name__)
        return _Failed(kind.__name__, str(error))
    except Exception as error:  # noqa: BLE001 - sent to the parent, which raises it again
        return _Failed(None, f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}")


def _rebuilt(failure: _Failed) -> Exception:
    kind = getattr(errors, failure.error, None) if failure.error else None
    if kind is None:
        return WorkerError(failure.message)
    error: Exception = kind.__new__(kind, failure.message)  # some constructors want more than the message
    return error


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
