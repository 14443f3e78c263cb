"""Reading a LIBERO scene: the gripper, the objects' collision boxes, the goal."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import ConfigError
from rdvla.experts.libero.boxes import Array, Boxes
from rdvla.experts.libero.joints import Joint


@dataclass(frozen=True)
class Goal:
    """One predicate of a task's BDDL goal.

    Attributes:
        predicate: lower case, e.g. `in`, `on`, `open`, `turnon`.
        arguments: names of objects or regions.
    """

    predicate: str
    arguments: tuple[str, ...]


class LiberoScene:
    """A view of a LIBERO problem's state, for experts. Positions are in metres, world frame."""

    def __init__(self, problem: Any) -> None:
        """Look at `problem`, the robosuite environment behind a LIBERO task, after its reset."""
        self.problem = problem
        self._model = problem.sim.model._model
        self._data = problem.sim.data._data
        self._site = problem.sim.model.site_name2id("gripper0_grip_site")
        self._base = problem.sim.model.body_name2id("robot0_base")
        self._geoms: dict[int, NDArray[np.intp]] = {}

    @property
    def goals(self) -> tuple[Goal, ...]:
        """The goal's predicates, all of which must hold."""
        return tuple(Goal(str(g[0]).lower(), tuple(g[1:])) for g in self.problem.parsed_problem["goal_state"])

    def holds(self, goal: Goal) -> bool:
        """Evaluate a predicate of the goal in the present state."""
        return bool(self.problem._eval_predicate([goal.predicate, *goal.arguments]))

    @property
    def names(self) -> tuple[str, ...]:
        """Objects and fixtures that have a body of their own (tables and floors do not)."""
        return tuple(self.problem.obj_body_id)

    @property
    def gripper_position(self) -> Array:
        """The grip site, between the finger pads: `[3]`."""
        return np.array(self._data.site_xpos[self._site])

    @property
    def gripper_rotation(self) -> Array:
        """The grip site's frame `[3, 3]`: columns are closing direction, depth, approach."""
        return np.array(self._data.site_xmat[self._site]).reshape(3, 3)

    @property
    def gripper_opening(self) -> float:
        """The distance between the finger pads in metres, 0 to 0.08."""
        joints = [self.problem.sim.data.get_joint_qpos(f"gripper0_finger_joint{i}") for i in (1, 2)]
        return float(abs(joints[0]) + abs(joints[1]))

    @property
    def elbow(self) -> float:
        """The angle of the arm's fourth joint in radians: -3.07 (bent) to -0.07 (stretched)."""
        return float(self.problem.sim.data.get_joint_qpos("robot0_joint4"))

    @property
    def base(self) -> Array:
        """The robot's base: `[3]`."""
        return np.array(self._data.xpos[self._base])

    def in_hand(self, name: str) -> bool:
        """Say whether both finger pads touch an object."""
        held = self.problem.get_object(name)
        return bool(self.problem._check_grasp(gripper=self.problem.robots[0].gripper, object_geoms=held))

    def position(self, name: str) -> Array:
        """Return where an object's body or a region's site is: `[3]`."""
        if name in self.problem.obj_body_id:
            return np.array(self._data.xpos[self.problem.obj_body_id[name]])
        return np.array(self.problem.sim.data.get_site_xpos(name))

    def parent(self, region: str) -> str | None:
        """Return the object that a region belongs to; None for a region of the table or floor."""
        parent = getattr(self.problem.object_states_dict[region], "parent_name", None)
        return parent if parent in self.problem.obj_body_id else None

    def is_region(self, name: str) -> bool:
        """Say whether `name` is a region (a site) rather than an object.

        Raises:
            ConfigError: the scene has neither.
        """
        if name in self.problem.obj_body_id:
            return False
        if name in self.problem.object_sites_dict:
            return True
        raise ConfigError(f"the goal names '{name}', which this scene lacks; it has {', '.join(self.names)}.")

    def region_half_size(self, region: str) -> Array:
        """Return a region's half extents `[3]` along the world's axes."""
        rotation = np.asarray(self.problem.sim.data.get_site_xmat(region)).reshape(3, 3)
        return np.asarray(np.abs(rotation) @ np.asarray(self.problem.object_sites_dict[region].size, dtype=float))

    def walls(self, region: str) -> Boxes | None:
        """Return what a region's bottom and walls are made of: a drawer's own boxes, or those of the whole object.

        A place of the table or floor has none.
        """
        parent = self.parent(region)
        if parent is None:
            return None
        joints = self.problem.object_sites_dict[region].joints
        if not joints:
            return self.boxes(parent)
        return self.body_boxes(int(self._model.jnt_bodyid[self.problem.sim.model.joint_name2id(joints[0])]))

    def boxes(self, name: str) -> Boxes:
        """Return an object's collision geometry as it lies now (other shapes as their bounding boxes)."""
        return self.body_boxes(self.problem.obj_body_id[name])

    def body_boxes(self, body: int) -> Boxes:
        """Return the same for a body of the simulation and everything that hangs on it."""
        if body not in self._geoms:
            self._geoms[body] = self._collision_geoms(body)
        ids = self._geoms[body]
        rotations = np.array(self._data.geom_xmat[ids]).reshape(-1, 3, 3)
        local = np.array(self._model.geom_aabb[ids])
        centers = np.array(self._data.geom_xpos[ids]) + np.einsum("nij,nj->ni", rotations, local[:, :3])
        return Boxes(centers, rotations, local[:, 3:])

    def obstacle_points(self, target: str | None = None) -> Array:
        """Return points `[M, 3]` of every object and fixture but `target`."""
        clouds = [self.boxes(name).points(0.015) for name in self.names if name != target]
        return np.concatenate([np.empty((0, 3)), *clouds])

    def door(self, place: str) -> str | None:
        """Return what must be open for something to get to `place`: a drawer's region or a fixture."""
        parent = self.parent(place) if self.is_region(place) else None
        if parent is None or not self._articulation(parent).get("default_open_ranges"):
            return None
        return place if self.problem.object_sites_dict[place].joints else parent

    def joint(self, goal: Goal) -> Joint:
        """Return the joint that decides an `open`, `close`, `turnon` or `turnoff` predicate.

        Raises:
            ConfigError: the predicate's argument has no joint.
        """
        name = goal.arguments[0]
        holder = self.problem.object_sites_dict[name] if self.is_region(name) else self.problem.get_object(name)
        owner = self.parent(name) if self.is_region(name) else name
        satisfied = None if owner is None else self._articulation(owner).get(f"default_{goal.predicate}_ranges")
        if not holder.joints or not satisfied:
            raise ConfigError(f"the goal wants '{goal.predicate}' of '{name}', which has no joint for that.")
        index = self.problem.sim.model.joint_name2id(holder.joints[0])
        return Joint(self._model, self._data, index, (min(satisfied) + max(satisfied)) / 2)

    def _articulation(self, name: str) -> dict[str, list[float]]:
        return dict(self.problem.get_object(name).object_properties.get("articulation", {}))

    def _collision_geoms(self, root: int) -> NDArray[np.intp]:
        bodies = {root}
        for body in range(root + 1, self._model.nbody):
            if int(self._model.body_parentid[body]) in bodies:
                bodies.add(body)
        collides = (self._model.geom_contype != 0) | (self._model.geom_conaffinity != 0)
        inside = np.isin(self._model.geom_bodyid, sorted(bodies))
        return np.flatnonzero(collides & inside)
