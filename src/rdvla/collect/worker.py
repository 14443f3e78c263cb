"""What a worker process of a collection does: plays demonstrations and stages them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rdvla.collect.recording import Attempt, Demonstrator, play
from rdvla.collect.staging import Outcome, Staging
from rdvla.envs.base import Env, Suite, TaskSpec
from rdvla.jobs.process import TaskKey

ExpertFactory = Callable[[TaskSpec], Demonstrator]
"""`task -> expert that says what is clean and what is executed`; must be importable by name."""


@dataclass(frozen=True)
class WorkerSettings:
    """What every worker needs to know.

    Attributes:
        output: folder of the dataset; demonstrations go to its staging folder.
        suites: the suites that may be played, by name.
        make_expert: makes the demonstrator of a task.
        camera_size: height and width of the images in pixels.
        render_every: control steps from one rendered image to the next.
    """

    output: Path
    suites: Mapping[str, Suite]
    make_expert: ExpertFactory
    camera_size: int
    render_every: int


class AttemptPlayer:
    """Keeps the environment and the expert of the last task, and stages what it records."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Play as `settings` say."""
        self._settings = settings
        self._staging = Staging(settings.output)
        self._env: Env | None = None
        self._expert: Demonstrator | None = None
        self._task: TaskKey | None = None

    def play(self, job: Attempt) -> Outcome:
        """Play one attempt, stage its result and say how it ended, `solved` or `failed`.

        Raises:
            SimulatorError: the simulator broke.
            StorageError: the disk refuses.
        """
        env, expert = self._prepare(job)
        demonstration, num_steps, seconds = play(env, expert, job, self._settings.render_every)
        if demonstration is None:
            self._staging.settle(job, "failed", {"num_steps": num_steps, "seconds": seconds})
            return "failed"
        self._staging.keep(demonstration)
        return "solved"

    def close(self) -> None:
        """Release the environment."""
        env, self._env, self._task = self._env, None, None
        if env is not None:
            env.close()

    def _prepare(self, attempt: Attempt) -> tuple[Env, Demonstrator]:
        if self._env is None or self._expert is None or self._task != attempt.task:
            self.close()
            suite = self._settings.suites[attempt.suite]
            self._env = suite.make_env(attempt.task_id, camera_size=self._settings.camera_size)
            self._expert = self._settings.make_expert(self._env.task)
            self._task = attempt.task
        return self._env, self._expert
