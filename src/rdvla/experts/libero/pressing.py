"""The skill for `close`: press against a drawer's or a door's outside until it is shut."""

import numpy as np

from rdvla.experts.libero.articulated import SLIPPED, MoveJoint, facing
from rdvla.experts.libero.boxes import Array
from rdvla.experts.libero.control import CLOSED, downward_rotation
from rdvla.experts.libero.grasps import FINGER_HALF_DEPTH, TIP_BELOW, closing_yaw, wrap_half_turn

GAP = 0.004  # m between the fingers and what they are going to press
DOOR_OVERLAP = 0.030  # m from a door's upper edge down to the finger tips: the hand stays above the edge
EDGE_DISTANCE = 0.035  # m from a door's free edge to where it is pressed
BESIDE = 0.025  # m to the sides that the fingers meet what sticks out of a door
SMALL = 1e-3  # m or rad
DOWN = np.array([0.0, 0.0, -1.0])


class PressShut(MoveJoint):
    """Closes a drawer with the finger tips, or a door with the side of the fingers, hand above its edge."""

    close_steps = 0
    waiting_gripper = CLOSED
    travels_turning = False  # what it shuts is wide open, and in the way

    def _plan(self) -> tuple[Array, Array]:
        return self._door() if self._joint.hinge else self._drawer()

    def _drawer(self) -> tuple[Array, Array]:
        """Return the pose of a tilted hand whose tips touch what sticks out furthest."""
        boxes, way = self._scene.body_boxes(self._joint.body), self._joint.direction
        reach = [float((boxes.only(i).points() @ way).min()) for i in range(len(boxes.centers))]
        bar = int(np.argmin(reach))
        approach = (way + DOWN) / np.sqrt(2)
        tips = boxes.centers[bar] + (reach[bar] - float(boxes.centers[bar] @ way) - GAP) * way
        return tips - TIP_BELOW * approach, facing(self._scene, approach, np.cross(DOWN, way))

    def _door(self) -> tuple[Array, Array]:
        """Return the pose of a hand that points down, in front of a door near its free edge."""
        boxes, joint = self._scene.body_boxes(self._joint.body), self._joint
        panel = int(np.argmax(np.prod(boxes.halves, axis=1)))
        center, rotation, half = boxes.centers[panel], boxes.rotations[panel], boxes.halves[panel]
        thin = int(np.argmin(half))
        upright = int(np.argmax(np.abs(rotation[2])))
        wide = 3 - thin - upright
        lever = center - joint.anchor
        edge = rotation[:, wide] * np.sign(rotation[:, wide] @ lever)
        way = rotation[:, thin] * np.sign(rotation[:, thin] @ np.cross(joint.direction, lever))
        spot = center + (half[wide] - EDGE_DISTANCE) * edge
        points = boxes.points()
        near = np.abs((points - spot) @ edge) < BESIDE
        outside = float(((points[near] - spot) @ way).min()) - FINGER_HALF_DEPTH - GAP
        height = float(points[:, 2].max()) - DOOR_OVERLAP + TIP_BELOW
        position = spot + outside * way
        yaw = wrap_half_turn(closing_yaw(edge))
        return np.array([*position[:2], height]), downward_rotation(yaw)

    @property
    def _is_moved(self) -> bool:
        return self._scene.holds(self._wanted)

    def _slipped(self, position: Array) -> bool:
        """Say whether the hand has gone past what it presses; a door that swings ahead is caught up with."""
        expected = self._expected
        further, _ = self._joint.moved(expected, self._rotation, self._sign * SMALL)
        way = further - expected
        return float((position - expected) @ way) > SLIPPED * float(np.linalg.norm(way))

    def _target(self) -> tuple[tuple[Array, Array], float]:
        (position, rotation), gripper = super()._target()
        return (position, self._rotation if self._joint.hinge else rotation), gripper
