"""What a worker of a collection does: plays demonstrations and returns them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rdvla.collect.recording import Attempt, Demonstrator, Play, play
from rdvla.envs.base import Env, Suite, TaskSpec
from rdvla.jobs.pool import TaskKey

ExpertFactory = Callable[[TaskSpec], Demonstrator]
"""`task -> expert that says what is clean and what is executed`; must be importable by name."""


@dataclass(frozen=True)
class Recipe:
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


class AttemptPlayer:
    """Keeps the environment and the expert of the last task."""

    def __init__(self, recipe: Recipe) -> None:
        """Play as `recipe` says."""
        self._recipe = recipe
        self._env: Env | None = None
        self._expert: Demonstrator | None = None
        self._task: TaskKey | None = None

    def play(self, job: Attempt) -> Play:
        """Play one attempt.

        Raises:
            SimulatorError: the simulator broke.
        """
        env, expert = self._prepare(job)
        return play(env, expert, job, self._recipe.render_every)

    def close(self) -> None:
        """Release the environment."""
        env, self._env, self._task = self._env, None, None
        if env is not None:
            env.close()

    def _prepare(self, attempt: Attempt) -> tuple[Env, Demonstrator]:
        if self._env is None or self._expert is None or self._task != attempt.task:
            self.close()
            suite = self._recipe.suites[attempt.suite]
            (spec,) = (task for task in suite.tasks() if task.task_id == attempt.task_id)
            self._expert = self._recipe.make_expert(spec)
            self._expert.prepare(suite)
            self._env = suite.make_env(attempt.task_id, camera_size=self._recipe.camera_size)
            self._task = attempt.task
        return self._env, self._expert
