"""Workers that are actors of a Ray cluster: the same jobs, the same results, on many machines.

Only what a worker is built from and what it returns travels; nothing is written on its machine. A worker is given jobs
once it runs, so machines may join late, and when one is lost its episode is played again elsewhere.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any, Generic

from rdvla.errors import ConfigError, MissingExtraError
from rdvla.jobs.pool import (
    THREAD_VARIABLES,
    Broken,
    Failed,
    J,
    Played,
    Player,
    R,
    Slot,
    TaskKey,
    WorkerError,
    rebuilt,
    reply,
)
from rdvla.wire.protocol import API_KEY_VARIABLE

START_TIMEOUT_S = 600.0
"""So long a cluster may take until the first worker runs."""

_STOP_S = 10.0


class RayPool:
    """A `Pool` of Ray actors."""

    def __init__(self, address: str | None = None, *, gpus_per_worker: float = 0.0) -> None:
        """Connect to a cluster, or start one on this machine.

        Args:
            address: `auto` or `HOST:PORT`; None takes `RAY_ADDRESS`, else this machine alone.
            gpus_per_worker: a worker's share of a GPU; workers with 0.25 each share one between four.

        Raises:
            MissingExtraError: Ray is not installed.
            ConfigError: there is no cluster at `address`, or a share below 0.
        """
        if not gpus_per_worker >= 0:
            raise ConfigError(f"gpus_per_worker must be at least 0, found {gpus_per_worker}.")
        self._ray = _connect(address)
        self._gpus = gpus_per_worker
        self._slots: list[RaySlot[Any, Any]] = []
        self._opened = 0.0

    def open(self, make_player: Callable[[], Player[J, R]], count: int) -> "Sequence[RaySlot[J, R]]":
        """Prepare `count` actors; those that the cluster has no room for wait until it has."""
        variables = dict.fromkeys((name for name in THREAD_VARIABLES if name not in os.environ), "1")
        ours = (name for name in os.environ if name.startswith("RDVLA_") and name != API_KEY_VARIABLE)
        variables |= {name: os.environ[name] for name in ours}
        options = {"num_cpus": 1, "num_gpus": self._gpus, "max_restarts": 0, "runtime_env": {"env_vars": variables}}
        slots: list[RaySlot[J, R]] = [RaySlot(self._ray, make_player, options) for _ in range(count)]
        self._slots, self._opened = list(slots), time.monotonic()
        return slots

    def wait(self, busy: Sequence[Slot[Any, Any]], timeout_s: float) -> None:
        """Wait until one of the `busy` actors replies or dies, or, if none is, until one runs; at most `timeout_s`.

        Raises:
            ConfigError: no actor runs after ten minutes.
        """
        pending = [slot.pending for slot in (busy or self._slots) if isinstance(slot, RaySlot)]
        self._ray.wait([reference for reference in pending if reference is not None], timeout=timeout_s)
        if not busy and time.monotonic() - self._opened > START_TIMEOUT_S:
            raise ConfigError(
                f"no worker started within {START_TIMEOUT_S:g} s: each asks for 1 CPU and {self._gpus:g} GPUs, and the "
                f"cluster has {self._ray.cluster_resources()}."
            )
        if busy:
            self._opened = time.monotonic()


class RaySlot(Generic[J, R]):
    """A `Slot` that is an actor, wherever the cluster has room for it."""

    def __init__(self, ray: ModuleType, make_player: Callable[[], Player[J, R]], options: dict[str, Any]) -> None:
        """Prepare a slot whose actors call `make_player`."""
        self._ray, self._make_player, self._options = ray, make_player, options
        self._actor: Any = None
        self._running: Any = None
        self._reply: Any = None
        self._started = 0.0
        self.job: J | None = None
        self.task: TaskKey | None = None

    @property
    def ready(self) -> bool:
        """Whether the actor runs; asking starts one."""
        if self._actor is None:
            self._actor = self._ray.remote(_Actor).options(**self._options).remote()
            self._running = self._actor.started.remote()
        if self._running is not None and self._ray.wait([self._running], timeout=0)[0]:
            try:
                self._ray.get(self._running)
            except self._lost as error:
                if getattr(error, "actor_init_failed", False):  # for instance rdvla is not installed on its machine
                    raise WorkerError(str(error)) from None
                self.kill()  # its machine went before it ran
                return False
            self._running = None
        return self._running is None

    @property
    def _lost(self) -> tuple[type[Exception], ...]:
        """What Ray raises where a worker, a machine or what it returned is gone; another may do better."""
        known = self._ray.exceptions
        worker = (known.RayActorError, known.WorkerCrashedError, known.OutOfMemoryError)
        return (*worker, known.NodeDiedError, known.ObjectLostError)

    @property
    def pending(self) -> Any:
        """What becomes ready when the actor runs, replies or dies; None if nothing will."""
        return self._reply if self._reply is not None else self._running

    def send(self, job: J, task: TaskKey) -> None:
        """Have an episode of `task` played."""
        self.job, self.task, self._started = job, task, time.monotonic()
        self._reply = self._actor.play.remote(self._make_player, job)

    def receive(self, timeout_s: float) -> Played[R] | Broken | None:
        """Return what became of the episode, or None if it is still being played; see `Slot.receive`."""
        found: Any
        try:
            if self._ray.wait([self._reply], timeout=0)[0]:
                found = self._ray.get(self._reply)
            elif time.monotonic() - self._started > timeout_s:
                found = Broken(f"the episode was still running after {timeout_s:g} s")
            else:
                return None
        except self._lost as error:
            found = Broken(f"the worker died ({_first_line(error)})")
        except self._ray.exceptions.RayError as error:  # e.g. a module that its machine does not have
            raise WorkerError(str(error)) from None
        if isinstance(found, Failed):
            raise rebuilt(found)
        self.job = self._reply = None
        if isinstance(found, Broken):
            self.kill()
            return found
        played: Played[R] = found
        return played

    def stop(self) -> None:
        """Let an idle actor close its environment and end."""
        if self._actor is not None and self._running is None:
            with suppress(self._ray.exceptions.RayError):  # gone, or too slow to wait for
                self._ray.get(self._actor.close.remote(), timeout=_STOP_S)
        self.kill()

    def kill(self) -> None:
        """End the actor at once; `ready` starts a new one."""
        if self._actor is not None:
            self._ray.kill(self._actor)
        self._actor = self._running = self._reply = self.task = self.job = None


class _Actor:
    """What runs on the cluster: one player."""

    def __init__(self) -> None:
        self._player: Player[Any, Any] | None = None

    def started(self) -> None:
        """Answer once the actor runs."""

    def play(self, make_player: Callable[[], Player[Any, Any]], job: object) -> Played[Any] | Broken | Failed:
        """Play a job, the first one with a new player."""
        if self._player is None:
            self._player = make_player()
        return reply(self._player, job)

    def close(self) -> None:
        """Release the environment."""
        if self._player is not None:
            self._player.close()


def _connect(address: str | None) -> ModuleType:
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ.setdefault(name, "0")
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "ray") from None
    if not ray.is_initialized():
        try:
            ray.init(address=address, include_dashboard=None if address else False, logging_level=logging.WARNING)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(
                f"no Ray cluster at '{address}': {error}. Start one with `ray start --head`, or drop --address."
            ) from None
    module: ModuleType = ray
    return module


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
