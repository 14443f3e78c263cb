"""A process that plays demonstrations: one environment of one task at a time."""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Literal, Protocol

from rdvla.envs.base import Env, TaskSpec
from rdvla.errors import MissingExtraError, RDVLAError, SimulatorError
from rdvla.experts.recording import Attempt, Demonstrator, play
from rdvla.experts.schedule import TaskKey
from rdvla.experts.staging import Outcome, Staging


class EnvFactory(Protocol):
    """Starts an environment, as `rdvla.envs.make_env`; importable by name, for it is sent to another process."""

    def __call__(self, suite: str, task_id: int, *, camera_size: int) -> Env:
        """Start the environment of one task."""
        ...


ExpertFactory = Callable[[TaskSpec], Demonstrator]
"""`task -> expert that says what is clean and what is executed`; must be importable by name."""

_ONE_THREAD = ("OMP_NUM_THREADS", "LP_NUM_THREADS")
"""Threads of numpy and of Mesa's software renderer: one each, since every worker has a core of its own."""


@dataclass(frozen=True)
class WorkerSettings:
    """What every worker needs to know.

    Attributes:
        output: folder of the dataset; demonstrations go to its staging folder.
        make_env: starts an environment.
        make_expert: makes the demonstrator of a task.
        camera_size: height and width of the images in pixels.
        render_every: control steps from one rendered image to the next.
    """

    output: Path
    make_env: EnvFactory
    make_expert: ExpertFactory
    camera_size: int
    render_every: int


@dataclass(frozen=True)
class Reply:
    """What became of an attempt.

    Attributes:
        outcome: how it ended, or `fatal`: nothing can go on (a user's mistake, a full disk, a defect of ours).
        message: what went wrong, if something did.
        error: for a `fatal` outcome the kind of error, None for a defect (the message is then a traceback).
    """

    outcome: Outcome | Literal["fatal"]
    message: str = ""
    error: type[RDVLAError] | None = None


class Worker:
    """One slot of the pool: a process, replaced by a new one when it breaks.

    Attributes:
        attempt: what is being played, or None.
        task: the task whose environment the process has, or None.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self.attempt: Attempt | None = None
        self.task: TaskKey | None = None

    @property
    def waitables(self) -> list[Connection | int]:
        """Objects that become ready when the process replies or dies."""
        assert self._connection is not None
        assert self._process is not None
        return [self._connection, self._process.sentinel]

    def send(self, attempt: Attempt) -> None:
        """Have an attempt played, in a new process if there is none."""
        if self._connection is None:
            self._start()
        assert self._connection is not None
        self.attempt, self.task = attempt, (attempt.suite, attempt.task_id)
        with suppress(BrokenPipeError, ConnectionResetError):  # it died while idle, `receive` will say so
            self._connection.send(attempt)

    def receive(self) -> Reply | None:
        """Return what became of the attempt, or None while it is being played."""
        assert self._connection is not None
        assert self._process is not None
        try:
            if not self._connection.poll():
                return None
            reply: Reply = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(5)
            reply = Reply("error", f"the worker process died (exit code {self._process.exitcode})")
            self.kill()
        self.attempt = None
        if reply.outcome == "error":
            self.task = None
        return reply

    def stop(self) -> None:
        """Let the process close its environment and end; kill it if it does not."""
        if self._connection is not None and self._process is not None:
            with suppress(BrokenPipeError, ConnectionResetError):
                self._connection.send(None)
            self._process.join(10)
        self.kill()

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = self.task = self.attempt = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=worker_main, args=(theirs, self._settings), daemon=True)
        with _single_threaded():
            self._process.start()
        theirs.close()


def wait_for_any(workers: list[Worker], timeout_s: float) -> None:
    """Wait until one of the `workers` replies or dies, at most `timeout_s`."""
    wait([waitable for worker in workers for waitable in worker.waitables], timeout_s)


def worker_main(connection: Connection, settings: WorkerSettings) -> None:
    """Play the attempts that arrive on `connection` until None arrives or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    player = _Player(settings)
    try:
        while (attempt := _receive(connection)) is not None:
            try:
                reply = player.play(attempt)
            except Exception:
                connection.send(Reply("fatal", traceback.format_exc()))
                raise
            with suppress(BrokenPipeError):  # the parent was killed; what was recorded is staged
                connection.send(reply)
    finally:
        player.close()


class _Player:
    """Keeps the environment and the expert of the last task."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._staging = Staging(settings.output)
        self._env: Env | None = None
        self._expert: Demonstrator | None = None
        self._task: TaskKey | None = None

    def play(self, attempt: Attempt) -> Reply:
        """Play one attempt and stage its result."""
        try:
            env, expert = self._prepare(attempt)
            demonstration, num_steps, seconds = play(env, expert, attempt, self._settings.render_every)
            if demonstration is None:
                self._staging.settle(attempt, "failed", {"num_steps": num_steps, "seconds": seconds})
                return Reply("failed")
            self._staging.keep(demonstration)
            return Reply("solved")
        except SimulatorError as error:
            self.close()
            return Reply("error", str(error))
        except RDVLAError as error:
            kind = RDVLAError if isinstance(error, MissingExtraError) else type(error)
            return Reply("fatal", str(error), kind)

    def close(self) -> None:
        """Release the environment."""
        env, self._env, self._task = self._env, None, None
        if env is not None:
            env.close()

    def _prepare(self, attempt: Attempt) -> tuple[Env, Demonstrator]:
        key = (attempt.suite, attempt.task_id)
        if self._env is None or self._expert is None or self._task != key:
            self.close()
            self._env = self._settings.make_env(*key, camera_size=self._settings.camera_size)
            self._expert = self._settings.make_expert(self._env.task)
            self._task = key
        return self._env, self._expert


def _receive(connection: Connection) -> Attempt | None:
    try:
        attempt: Attempt | None = connection.recv()
    except EOFError:
        return None
    return attempt


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Give processes started inside one thread each, unless the user set another number."""
    added = [name for name in _ONE_THREAD if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
