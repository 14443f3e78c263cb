"""Getting a stretched arm to bend again.

With the elbow at the end of its range the arm cannot be drawn in: the controller sees no way to move the hand along the
straight arm. Turning the hand towards the base bends the elbow, and the arm is free again.
"""

import numpy as np
from numpy.typing import NDArray

from rdvla.experts.libero.control import MAX_TURN
from rdvla.experts.libero.scene import LiberoScene

STRETCHED = -0.09  # rad: the elbow's range ends at -0.07
BENT = -0.6  # rad
PATIENCE = 15  # steps for which an arm may stay stretched
MOST_STEPS = 20  # that the hand turns


class Unfold:
    """Watches the elbow and turns the hand when the arm has been stretched for long."""

    def __init__(self, scene: LiberoScene) -> None:
        """Watch the arm of `scene`, from now on."""
        self._scene = scene
        self._stretched = 0
        self._left = 0

    def correct(self, action: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return `action` `[7]`, or while the arm is being bent a turn of the hand with the same gripper command."""
        elbow = self._scene.elbow
        self._stretched = self._stretched + 1 if elbow > STRETCHED else 0
        if self._stretched > PATIENCE:
            self._left, self._stretched = MOST_STEPS, 0
        if elbow < BENT:
            self._left = 0
        if self._left == 0:
            return action
        self._left -= 1
        inward = self._scene.base - self._scene.gripper_position
        turn = np.cross(self._scene.gripper_rotation[:, 2], [inward[0], inward[1], 0.0])
        turn *= MAX_TURN / max(float(np.linalg.norm(turn)), 1e-6)
        return np.array([0, 0, 0, *turn, action[6]], dtype=np.float32)
