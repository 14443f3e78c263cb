"""The two cameras. Nothing is drawn before somebody asks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdvla.envs.calvin.assets import CameraConfig

_HAND_LINK = "gripper_cam"


class Camera:
    """A camera, fixed in the room or on the robot's hand."""

    def __init__(self, client: Any, config: CameraConfig, robot: int) -> None:
        """Place it.

        Args:
            client: the simulation.
            config: where it is and what it sees.
            robot: the robot's body, whose link `gripper_cam` carries a camera without a place of its own.
        """
        self._client, self._config, self._robot = client, config, robot
        self._projection = client.computeProjectionMatrixFOV(config.fov, 1, config.near, config.far)
        self._fixed_view = None
        if config.look_from is not None:
            self._fixed_view = client.computeViewMatrix(config.look_from, config.look_at, config.up)
        names = [client.getJointInfo(robot, joint)[12].decode() for joint in range(client.getNumJoints(robot))]
        self._hand_link = names.index(_HAND_LINK)

    def draw(self, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Draw what it sees now.

        Args:
            size: height and width in pixels; None takes the configuration's.

        Returns:
            uint8 `[H, W, 3]`, RGB, upright.
        """
        height, width = self._config.size if size is None else size
        view = self._view_from_hand() if self._fixed_view is None else self._fixed_view
        image = self._client.getCameraImage(width, height, view, self._projection)
        rgba: NDArray[np.uint8] = np.reshape(image[2], (height, width, 4)).astype(np.uint8)
        return np.ascontiguousarray(rgba[:, :, :3])

    def _view_from_hand(self) -> Any:
        position, quaternion = self._client.getLinkState(self._robot, self._hand_link)[:2]
        rotation = np.array(self._client.getMatrixFromQuaternion(quaternion)).reshape(3, 3)
        forward, up = rotation[:, 1], -rotation[:, 2]
        return self._client.computeViewMatrix(position, position + forward, up)
