"""The environment that a worker keeps between episodes: starting one costs about as much as an episode."""

from collections.abc import Callable

from rdvla.envs.base import Env
from rdvla.jobs.pool import TaskKey


class HeldEnv:
    """The environment of the last task; base of the players of evaluations and collections."""

    _env: Env | None = None
    _task: TaskKey | None = None

    def hold(self, task: TaskKey, start: Callable[[], Env]) -> Env:
        """Return the environment of `task`; `start` is called if it is another than the last one."""
        if self._env is None or self._task != task:
            self.close()
            self._env, self._task = start(), task
        return self._env

    def close(self) -> None:
        """Release the environment."""
        env, self._env, self._task = self._env, None, None
        if env is not None:
            env.close()
