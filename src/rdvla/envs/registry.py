"""Finds an environment by suite name, importing only what that suite needs."""

from rdvla.envs.base import Env, TaskSpec

TOY_SUITE = "toy"


def list_tasks(suite: str) -> list[TaskSpec]:
    """Return the tasks of `suite` (`toy` or a LIBERO suite) without starting a simulator.

    Raises:
        ConfigError: an unknown suite.
        MissingExtraError: a LIBERO suite, and LIBERO is not installed.
    """
    if suite == TOY_SUITE:
        from rdvla.envs import toy

        return toy.list_tasks()
    from rdvla.envs.libero import suites

    return suites.list_tasks(suite)


def num_init_states(suite: str, task_id: int) -> int:
    """Return how many bundled initial states a task has, without starting a simulator.

    Raises:
        ConfigError: unknown suite or task, or a task whose states cannot be read.
        MissingExtraError: a LIBERO suite, and LIBERO is not installed.
    """
    if suite == TOY_SUITE:
        from rdvla.envs import toy

        return toy.NUM_INIT_STATES
    from rdvla.envs.libero import suites

    return len(suites.load_init_states(suites.load_task(suite, task_id)))


def make_env(suite: str, task_id: int, *, camera_size: int | None = None) -> Env:
    """Start the environment of one task.

    Args:
        suite: `toy` (numpy, for tests and first steps) or a LIBERO suite.
        task_id: index in `list_tasks(suite)`.
        camera_size: height and width of the images in pixels; None takes the environment's own (LIBERO 256, toy 64).

    Raises:
        ConfigError: unknown suite or task.
        MissingExtraError: a LIBERO suite, and LIBERO is not installed.
        SimulatorError: the simulator does not start.
    """
    if suite == TOY_SUITE:
        from rdvla.envs.toy import ToyEnv

        return ToyEnv(task_id) if camera_size is None else ToyEnv(task_id, camera_size=camera_size)
    from rdvla.envs.libero.env import LiberoEnv

    return LiberoEnv(suite, task_id) if camera_size is None else LiberoEnv(suite, task_id, camera_size=camera_size)
