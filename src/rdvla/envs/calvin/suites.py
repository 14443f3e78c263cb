"""CALVIN's suites: chains of five tasks in the scenes A to D, and their tasks one by one; A to C also on varied tables.

Listing them needs neither pybullet nor data files.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from rdvla.embodiment import CALVIN
from rdvla.envs.base import Suite, TaskSpec
from rdvla.envs.calvin.assets import SCENES
from rdvla.envs.calvin.chains import CHAIN_LENGTH, NUM_CHAINS, first_tasks
from rdvla.envs.calvin.sentences import SENTENCES
from rdvla.envs.calvin.varied import SCENES as VARIED_SCENES
from rdvla.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from rdvla.envs.calvin.env import CalvinEnv

STAGE_STEPS = {"official": 360, "released": 800}
"""Protocol -> control steps allowed for each task of a chain."""
STRATEGIES = {"released": "calvin_released"}
"""Protocol -> how it has chunks executed, if it says so."""


class CalvinSuite(Suite):
    """The chains in one scene; the benchmark evaluates in D."""

    protocols = tuple(STAGE_STEPS)
    embodiment = CALVIN
    num_stages = CHAIN_LENGTH
    expert = "rdvla.experts.calvin:make_expert"

    @property
    def strategy(self) -> str:
        """The released evaluation averages overlapping chunks; the official one leaves it to the policy."""
        return STRATEGIES.get(self.protocol, "")

    def prepare(self) -> None:
        """Choose the renderer, which workers inherit.

        Raises:
            ConfigError: see `choose_renderer`.
            SimulatorError: see `choose_renderer`.
        """
        from rdvla.envs.calvin.bullet import choose_renderer

        with suppress(MissingExtraError):  # the simulator may be on other machines alone
            choose_renderer()

    def tasks(self) -> Sequence[TaskSpec]:
        """Return the one task there is: a chain."""
        steps = CHAIN_LENGTH * self._stage_steps
        return [TaskSpec(self.name, 0, "chain", "five tasks, one after the other", steps)]

    def num_init_states(self, task_id: int) -> int:
        """Return how many evaluation chains there are: none where the table varies.

        Raises:
            ConfigError: no such task.
        """
        self._require(task_id)
        return 0 if self._varied else NUM_CHAINS

    def make_env(self, task_id: int, *, camera_size: int | None = None) -> "CalvinEnv":
        """Prepare the scene; every episode starts a simulation of its own."""
        self._require(task_id)
        return self._env(self.tasks()[0], camera_size)

    def _env(self, task: TaskSpec, camera_size: int | None, *, alone: bool = False) -> "CalvinEnv":
        from rdvla.envs.calvin.env import CalvinEnv

        scene, steps = self.name.split("_")[1].upper(), self._stage_steps
        return CalvinEnv(task, scene, steps, camera_size=camera_size, alone=alone, varied=self._varied)

    @property
    def _varied(self) -> bool:
        return self.name.endswith("_varied")

    @property
    def _stage_steps(self) -> int:
        return STAGE_STEPS[self.protocol]

    def _require(self, task_id: int) -> None:
        if isinstance(task_id, bool) or task_id != 0:
            raise ConfigError(f"task_id = {task_id!r}: suite '{self.name}' has one task, 0: the chains.")


class SingleTaskSuite(CalvinSuite):
    """The tasks of one scene that a chain may begin with, one by one, from drawn starts; there are no bundled ones.

    For demonstrations of some tasks only, and to see which tasks a policy solves.
    """

    num_stages = 1

    def tasks(self) -> Sequence[TaskSpec]:
        """Return the tasks; each has several sentences, of which an episode draws one."""
        return [
            TaskSpec(self.name, number, task, SENTENCES[task][0], self._stage_steps)
            for number, task in enumerate(first_tasks())
        ]

    def num_init_states(self, task_id: int) -> int:
        """Return 0: starts are drawn.

        Raises:
            ConfigError: no such task.
        """
        self.select([task_id])
        return 0

    def make_env(self, task_id: int, *, camera_size: int | None = None) -> "CalvinEnv":
        """Prepare the scene; every episode starts a simulation of its own."""
        (task,) = self.select([task_id])
        return self._env(task, camera_size, alone=True)


def suites() -> Mapping[str, Suite]:
    """Return the suites by name: `calvin_a`, `calvin_a_single` and so on to D; A to C also as `..._varied`."""
    scenes = [f"calvin_{scene.lower()}" for scene in SCENES]
    lent = [f"calvin_{scene.lower()}" for scene in VARIED_SCENES]
    chains = [*scenes, *(f"{name}_varied" for name in lent)]
    single = [*(f"{name}_single" for name in scenes), *(f"{name}_single_varied" for name in lent)]
    protocol = CalvinSuite.protocols[0]
    found: dict[str, Suite] = {name: CalvinSuite(name, protocol) for name in chains}
    return found | {name: SingleTaskSuite(name, protocol) for name in single}
