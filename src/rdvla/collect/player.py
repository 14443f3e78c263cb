"""What a worker of a collection does: plays demonstrations and returns them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from rdvla.collect.recording import Attempt, Demonstrator, Play, play
from rdvla.envs.base import Env, Suite, TaskSpec
from rdvla.jobs.held import HeldEnv

ExpertFactory = Callable[[TaskSpec], Demonstrator]
"""`task -> expert that says what is clean and what is executed`; must be importable by name."""


@dataclass(frozen=True)
class AttemptRecipe:
    """What every worker needs to know; picklable.

    Attributes:
        suites: the suites that may be played, by name.
        make_expert: makes the demonstrator of a task.
        camera_size: height and width of the images in pixels; None takes the robot's.
        render_every: control steps from one rendered image to the next.
    """

    suites: Mapping[str, Suite]
    make_expert: ExpertFactory
    camera_size: int | None
    render_every: int


class AttemptPlayer(HeldEnv):
    """Keeps the environment and the expert of the last task."""

    _expert: Demonstrator

    def __init__(self, recipe: AttemptRecipe) -> None:
        """Play as `recipe` says."""
        self._recipe = recipe

    def play(self, job: Attempt) -> Play:
        """Play one attempt.

        Raises:
            SimulatorError: the simulator broke.
        """
        env = self.hold(job.task, partial(self._start, job))
        return play(env, self._expert, job, self._recipe.render_every)

    def _start(self, attempt: Attempt) -> Env:
        suite = self._recipe.suites[attempt.suite]
        (spec,) = suite.select([attempt.task_id])
        self._expert = self._recipe.make_expert(spec)
        self._expert.prepare(suite)
        return suite.make_env(attempt.task_id, camera_size=self._recipe.camera_size)
