"""Evaluation with rendering on demand against rendering at every step, in the real simulators."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdvla.bench.measure import OURS, PUBLISHED, Case, Unit, Variant
from rdvla.embodiment import Embodiment
from rdvla.envs.base import Env, InitState, Stage, Start, TaskSpec
from rdvla.envs.libero.env import SETTLING_STEPS
from rdvla.eval.protocol import Job, Rule
from rdvla.eval.rollout import run_episode
from rdvla.policy import Policy
from rdvla.stops import StopRule
from rdvla.types import Observation

START = InitState(0)
SEED = 7


@dataclass(frozen=True)
class Arena:
    """Where an episode is played.

    Attributes:
        suite: its suite.
        task_id: its task.
        unit: what is counted.
        first_views: how often both cameras are rendered before the first decision, if they are at every step.
    """

    suite: str
    task_id: int
    unit: Unit
    first_views: int


LIBERO = Arena("libero_object", 3, "episodes/min", SETTLING_STEPS)
CALVIN = Arena("calvin_d", 0, "chains/min", 1)


class RenderEveryStep:
    """An environment that renders both cameras after every step, settling included, as the stock ones do."""

    def __init__(self, env: Env, first_views: int) -> None:
        """Wrap `env`; see `Arena.first_views`."""
        self._env = env
        self._first_views = first_views
        self._latest: Observation | None = None

    @property
    def task(self) -> TaskSpec:
        """The task being simulated."""
        return self._env.task

    @property
    def embodiment(self) -> Embodiment:
        """The robot."""
        return self._env.embodiment

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the episode."""
        return self._env.stages

    @property
    def stage_index(self) -> int:
        """Number of the present stage."""
        return self._env.stage_index

    def reset(self, start: Start) -> None:
        """Start an episode, and render as often as is done before its first decision."""
        self._env.reset(start)
        for _ in range(self._first_views):
            self._latest = self._env.observe()

    def observe(self) -> Observation:
        """Return what was rendered after the last step."""
        assert self._latest is not None
        return self._latest

    def frame(self, camera: str) -> NDArray[np.uint8]:
        """Render one camera."""
        return self._env.frame(camera)

    def versions(self) -> Mapping[str, str]:
        """Return the environment's versions."""
        return self._env.versions()

    def state(self) -> NDArray[np.float32]:
        """Return the robot's state."""
        return self._env.state()

    def step(self, action: NDArray[np.float32]) -> bool:
        """Execute one action and render."""
        solved = self._env.step(action)
        self._latest = self._env.observe()
        return solved

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def simulator_cases(
    title: str, place: Arena, env: Env, policy: Policy, horizons: tuple[str, ...] = ("5", "8")
) -> list[Case]:
    """Return the same episode played in both ways, once for every number of actions executed per decision."""

    def play(env: Env, horizon: str) -> Tensor:
        job = Job(env.task, START, Rule(StopRule.fixed(12), horizon), SEED)
        outcome = run_episode(env, policy, job)
        return torch.tensor([outcome.success, outcome.steps, len(outcome.iterations), *env.state()])

    return [
        Case(
            f"evaluation on {place.suite}, {title}",
            f"{horizon} actions per decision",
            place.unit,
            {
                PUBLISHED: Variant(lambda h=horizon: play(RenderEveryStep(env, place.first_views), h)),  # type: ignore[misc]
                OURS: Variant(lambda h=horizon: play(env, h)),  # type: ignore[misc]
            },
            limit=0.0,
        )
        for horizon in horizons
    ]


def start(place: Arena, checkpoint: Path, *, device: str = "cpu", compile: bool = False) -> tuple[Env, Policy]:
    """Start the simulator and load the policy; see `rdvla.policies.network.load_policy`.

    Raises:
        ConfigError: CALVIN's data files are missing.
        MissingExtraError: the simulator is not installed.
        SimulatorError: it does not start.
        CheckpointError: there is no such checkpoint.
    """
    from rdvla.envs.registry import make_env
    from rdvla.policies.network import load_policy

    return make_env(place.suite, place.task_id), load_policy(checkpoint, device=device, compile=compile)
