"""libero_object with everything varied but the things themselves: where they stand, which is asked for, in which words.

In the benchmark a task's target always stands at one place, so that a policy can learn the place instead of the name.
This suite is ours; demonstrations of it are against that habit. It has no bundled states.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rdvla.embodiment import LIBERO
from rdvla.envs.base import InitState, Stage, Start, Suite, TaskSpec
from rdvla.envs.libero.env import LiberoEnv
from rdvla.envs.libero.suites import list_tasks
from rdvla.errors import ConfigError, SimulatorError

BASE = "libero_object"
NAME = f"{BASE}_varied"

SENTENCES = (
    "pick up the {} and place it in the basket",
    "put the {} in the basket",
    "take the {} and drop it into the basket",
    "move the {} over into the basket",
    "grasp the {} and lay it in the basket",
    "the {} belongs in the basket",
    "bring the {} to the basket and let go of it",
)
"""The benchmark's sentence, then ours."""

_MAX_TRIES = 100_000  # of six things one try in some hundreds succeeds


@dataclass(frozen=True)
class VariedSuite(Suite):
    """The scenes of libero_object; what each asks for differs from start to start."""

    embodiment = LIBERO
    expert = "rdvla.experts.libero:make_expert"

    def tasks(self) -> Sequence[TaskSpec]:
        """Return one task for each task of libero_object."""
        return [_varied(task) for task in list_tasks(BASE)]

    def num_init_states(self, task_id: int) -> int:
        """Return 0: it starts from seeds alone."""
        self.select([task_id])
        return 0

    def make_env(self, task_id: int, *, camera_size: int | None = None) -> "VariedEnv":
        """Start the simulator for a scene (5 to 15 seconds)."""
        return VariedEnv(task_id, camera_size=camera_size)


class VariedEnv(LiberoEnv):
    """A scene of libero_object in which the seed decides where things stand, which goes into the basket, and the words.

    Every thing but the basket gets a new place, uniform in the rectangle that the benchmark's places of this scene
    span, and none is nearer to another than those are. How it is turned stays as it is.
    """

    def __init__(self, task_id: int, *, camera_size: int | None = None) -> None:
        """Start the simulator for a scene; arguments and errors are those of `LiberoEnv`."""
        super().__init__(BASE, task_id, camera_size=camera_size)
        self._files = replace(self._files, spec=_varied(self._files.spec))
        ((_, _, self._container),) = self.unwrapped.parsed_problem["goal_state"]
        basket = self.unwrapped.object_states_dict[self._container].parent_name
        self._things = [name for name in self.unwrapped.objects_dict if name != basket]
        self._sentence = self.task.instruction

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The task, in the words of the running episode."""
        return (replace(super().stages[0], instruction=self._sentence),)

    def reset(self, start: Start) -> None:
        """Start an episode as `LiberoEnv.reset` does, from a seed.

        Raises:
            ConfigError: a bundled state.
            SimulatorError: the simulator broke.
        """
        if isinstance(start, InitState):
            raise ConfigError(f"{NAME} has no bundled initial states; start from a seed (--seeds).")
        super().reset(start)

    def _place(self, seed: int) -> None:
        super()._place(seed)
        rng = np.random.default_rng(seed)
        joints = [self.unwrapped.objects_dict[name].joints[0] for name in self._things]
        poses = [np.array(self.sim.data.get_joint_qpos(joint)) for joint in joints]
        for joint, pose, place in zip(joints, poses, find_places(rng, np.stack(poses)[:, :2]), strict=True):
            self.sim.data.set_joint_qpos(joint, np.concatenate([place, pose[2:]]))
        target = str(rng.choice(self._things))
        self.unwrapped.parsed_problem["goal_state"] = [["in", target, self._container]]
        self._sentence = str(rng.choice(SENTENCES)).format(_in_words(target))


def _varied(task: TaskSpec) -> TaskSpec:
    return replace(task, suite=NAME)


def find_places(rng: np.random.Generator, usual: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return places `[N, 2]` (m) within the rectangle of the `usual` ones, no nearer to each other than those are.

    Raises:
        SimulatorError: none were found.
    """
    spacing = min(_distances(usual))
    low, high = usual.min(axis=0), usual.max(axis=0)
    for _ in range(_MAX_TRIES):
        places = rng.uniform(low, high, size=usual.shape)
        if min(_distances(places)) >= spacing:
            return places
    raise SimulatorError(f"no places for {len(usual)} things {spacing:.3f} m apart in {_MAX_TRIES} tries.")


def _distances(places: NDArray[np.float64]) -> NDArray[np.float64]:
    first, second = np.triu_indices(len(places), k=1)
    return np.asarray(np.linalg.norm(places[first] - places[second], axis=1))


def _in_words(name: str) -> str:
    """Return what a thing of the scene is called in the benchmark's sentences."""
    kind, _, _ = name.rpartition("_")
    return kind.replace("_", " ")
