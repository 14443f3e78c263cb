"""What only a simulator knows. For scripted experts; a policy never sees it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pose:
    """Where a body is now.

    Attributes:
        position: float64 `[3]`, m, world frame.
        quaternion: float64 `[4]`, (w, x, y, z), world frame, as MuJoCo has it.
    """

    position: NDArray[np.float64]
    quaternion: NDArray[np.float64]


@dataclass(frozen=True)
class Privileged:
    """A view of the running simulation; every property is read anew.

    Attributes:
        env: the robosuite environment (`objects_dict`, `fixtures_dict`, `object_sites_dict`, `object_states_dict`,
            `obj_body_id`, `robots`, `_eval_predicate`).
    """

    env: Any

    @property
    def sim(self) -> Any:
        """The simulation (robosuite's `MjSim`); it is the same object for all episodes of an environment."""
        return self.env.sim

    @property
    def goal(self) -> tuple[tuple[str, ...], ...]:
        """The goal: predicates that must all hold, e.g. `("in", "milk_1", "basket_1_contain_region")`."""
        return tuple(tuple(predicate) for predicate in self.env.parsed_problem["goal_state"])

    @property
    def objects_of_interest(self) -> tuple[str, ...]:
        """The names of the objects that the task is about."""
        return tuple(self.env.obj_of_interest)

    @property
    def objects(self) -> Mapping[str, Any]:
        """Name -> model of every movable object."""
        return dict(self.env.objects_dict)

    @property
    def fixtures(self) -> Mapping[str, Any]:
        """Name -> model of every fixture (table, cabinet, stove, ...)."""
        return dict(self.env.fixtures_dict)

    @property
    def regions(self) -> Mapping[str, Any]:
        """Name -> site model of every region that a predicate can name."""
        return dict(self.env.object_sites_dict)

    @property
    def poses(self) -> Mapping[str, Pose]:
        """Name -> pose of the root body of every movable object and fixture that has one."""
        return {name: self.pose(name) for name in self.env.obj_body_id}

    def pose(self, name: str) -> Pose:
        """Return the pose of the root body of object or fixture `name`."""
        body = self.env.obj_body_id[name]
        data = self.sim.data
        return Pose(np.array(data.body_xpos[body]), np.array(data.body_xquat[body]))

    def site_position(self, name: str) -> NDArray[np.float64]:
        """Return the position of region `name`: float64 `[3]`, m, world frame."""
        return np.array(self.sim.data.get_site_xpos(name))

    def holds(self, predicate: tuple[str, ...]) -> bool:
        """Return whether one goal predicate holds now."""
        return bool(self.env._eval_predicate(list(predicate)))
