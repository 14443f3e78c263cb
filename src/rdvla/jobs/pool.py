"""What a pool of workers is, and what goes back and forth between a worker and the driver.

A worker plays the jobs it is sent, one at a time, and returns what came of them. It writes nothing: only the driver
does. Whatever raises in a worker comes back as a value, so that pools of all kinds treat it alike.
"""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from rdvla import errors
from rdvla.errors import RDVLAError, SimulatorError

EPISODE_TIMEOUT_S = 1800.0
"""Default: an episode that takes longer, the start of its environment included, is taken for hung."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS")
"""Threads of numpy, torch and Mesa's software renderer: one each, since every worker has a core of its own."""

TaskKey = tuple[str, int]
"""Suite and task id: episodes with the same key share an environment."""

J = TypeVar("J")
R = TypeVar("R")
J_contra = TypeVar("J_contra", contravariant=True)
R_contra = TypeVar("R_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class WorkerError(Exception):
    """Something that is not the user's fault was raised in a worker; the message holds its traceback."""


class Player(Protocol[J_contra, R_co]):
    """What a worker does: plays the jobs it is given, keeping the environment of the last one."""

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
class Failed:
    """Something else raised; `error` names its kind in `rdvla.errors`, or is None (`message` is a traceback)."""

    error: str | None
    message: str


class Slot(Protocol[J, R]):
    """One worker of a pool: it is replaced by a new one whenever it breaks.

    Attributes:
        job: the episode being played, or None.
        task: the task whose environment the worker has, or None.
    """

    job: J | None
    task: TaskKey | None

    @property
    def ready(self) -> bool:
        """Whether an idle worker can be sent a job now. Asking may start it; it need not be there yet."""
        ...

    def send(self, job: J, task: TaskKey) -> None:
        """Have an episode of `task` played."""
        ...

    def receive(self, timeout_s: float) -> Played[R] | Broken | None:
        """Return what became of the episode, or None if it is still being played.

        Args:
            timeout_s: end a worker that has played one episode, its own start included, for this long.

        Raises:
            RDVLAError: the player raised it.
            WorkerError: the player raised something else.
        """
        ...

    def stop(self) -> None:
        """Let an idle worker close its environment and end."""
        ...

    def kill(self) -> None:
        """End the worker at once; the next `send` starts a new one."""
        ...


class Pool(Protocol):
    """Where workers come from."""

    def open(self, make_player: Callable[[], Player[J, R]], count: int) -> Sequence[Slot[J, R]]:
        """Prepare `count` workers; none starts before its first job.

        Args:
            make_player: called in the worker; a function or class importable by name, or a `partial` of one.
            count: at least 1.
        """
        ...

    def wait(self, busy: Sequence[Slot[Any, Any]], timeout_s: float) -> None:
        """Wait, at most `timeout_s`, until a `busy` worker replies or dies; without any, until one is ready."""
        ...


def reply(player: Player[Any, Any], job: object) -> Played[Any] | Broken | Failed:
    """Play `job`, in the worker, and return what to tell the driver."""
    try:
        return Played(player.play(job))
    except SimulatorError as error:
        return Broken(str(error))
    except RDVLAError as error:
        kind = next(each for each in type(error).__mro__ if each.__module__ == errors.__name__)
        return Failed(kind.__name__, str(error))
    except Exception as error:  # noqa: BLE001 - sent to the driver, which raises it again
        return Failed(None, f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}")


def rebuilt(failure: Failed) -> Exception:
    """Return, in the driver, the error that `failure` tells of."""
    kind = getattr(errors, failure.error, None) if failure.error else None
    if kind is None:
        return WorkerError(failure.message)
    error: Exception = kind.__new__(kind, failure.message)  # some constructors want more than the message
    return error
