"""Workers that are processes of this machine: one environment each, replaced when a simulator crashes or hangs."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic

from rdvla.jobs.pool import THREAD_VARIABLES, Broken, Failed, J, Played, Player, R, Slot, TaskKey, rebuilt, reply


class ProcessPool:
    """A `Pool` of processes."""

    def open(self, make_player: Callable[[], Player[J, R]], count: int) -> "Sequence[ProcessSlot[J, R]]":
        """Prepare `count` processes."""
        return [ProcessSlot(make_player) for _ in range(count)]

    def wait(self, busy: Sequence[Slot[Any, Any]], timeout_s: float) -> None:
        """Wait until one of the `busy` processes replies or dies, at most `timeout_s`."""
        wait([slot.waitable for slot in busy if isinstance(slot, ProcessSlot)], timeout_s)


class ProcessSlot(Generic[J, R]):
    """A `Slot` that is a process of this machine."""

    def __init__(self, make_player: Callable[[], Player[J, R]]) -> None:
        """Prepare a slot whose processes call `make_player`; the first one starts with the first job."""
        self._make_player = make_player
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._started = 0.0
        self.job: J | None = None
        self.task: TaskKey | None = None

    @property
    def ready(self) -> bool:
        """Always: `send` starts the process."""
        return True

    def send(self, job: J, task: TaskKey) -> None:
        """Have an episode of `task` played."""
        if self._connection is None:
            self._start()
        assert self._connection is not None
        self.job, self.task, self._started = job, task, time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):  # it died while idle; `receive` reports that
            self._connection.send(job)

    def receive(self, timeout_s: float) -> Played[R] | Broken | None:
        """Return what became of the episode, or None if it is still being played; see `Slot.receive`."""
        assert self._connection is not None
        assert self._process is not None
        found: Any
        try:
            if self._connection.poll():
                found = self._connection.recv()
            elif time.monotonic() - self._started > timeout_s:
                found = Broken(f"the episode was still running after {timeout_s:g} s")
            else:
                return None
        except (EOFError, OSError):  # before its reply, or in the middle of it
            self._process.join(5)
            found = Broken(f"the worker process died ({_describe_exit(self._process.exitcode)})")
        if isinstance(found, Failed):
            raise rebuilt(found)
        self.job = None
        if isinstance(found, Broken):
            self.kill()
            return found
        played: Played[R] = found
        return played

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


def _worker_main(connection: Connection, make_player: Callable[[], Player[Any, Any]]) -> None:
    """Play the jobs that arrive on `connection` until None arrives or the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    player = make_player()
    try:
        while (job := connection.recv()) is not None:
            connection.send(reply(player, job))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent was killed; there is nobody to report to
    finally:
        player.close()


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
