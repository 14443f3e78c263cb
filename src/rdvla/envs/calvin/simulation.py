"""One play table in one pybullet client. Start a new one for every chain: that is what makes chains repeatable.

What an episode leaves behind (velocities of blocks, cached contacts, whether the button was pressed) cannot be reset.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rdvla.envs.calvin.assets import SceneConfig
from rdvla.envs.calvin.bullet import Client, Renderer, guarded
from rdvla.envs.calvin.cameras import Camera
from rdvla.envs.calvin.info import FLOOR, ROBOT, ROBOT_BASE, TABLE, Contact, Info
from rdvla.envs.calvin.robot import OBS_DIM as ROBOT_OBS_DIM
from rdvla.envs.calvin.robot import Robot, check_action, check_gripper, check_pose
from rdvla.envs.calvin.scene import OBS_DIM as SCENE_OBS_DIM
from rdvla.envs.calvin.scene import Scene
from rdvla.envs.calvin.varied import Look
from rdvla.errors import SimulatorError
from rdvla.types import finite_vector

PHYSICS_HZ = 240
CONTROL_HZ = 30
_GRAVITY = -9.8
_BASE_LINK = (-1, "base_link")


class Simulation:
    """A scene with its robot. Call `reset` first, `close` at the end, and everything from one thread."""

    def __init__(self, config: SceneConfig, *, renderer: Renderer, size: tuple[int, int] | None = None) -> None:
        """Load everything.

        Args:
            config: the scene.
            renderer: `egl` (the published one) or `tiny` (pybullet's own; needs no driver, other shades).
            size: height and width of both cameras' pictures in pixels; None takes the configuration's.

        Raises:
            MissingExtraError: pybullet is not installed.
            SimulatorError: the renderer does not start, or a file cannot be loaded.
        """
        self.config = config
        self.renderer = renderer
        self._size = size
        with guarded(f"CALVIN scene {config.name}: loading") as printed:
            self.client = Client(renderer, size or max(camera.size for camera in config.cameras.values()))
            try:
                self._start_physics()
                self.robot = Robot(self.client, config.robot, config.data)
                self.scene = Scene(self.client, config)
                self.cameras = {
                    name: Camera(self.client, camera, self.robot.body) for name, camera in config.cameras.items()
                }
            except BaseException:
                self.client.disconnect()
                raise
        self.drawn_by = {
            key.lower(): value for key, _, value in (line.partition("=") for line in printed) if key == "GL_RENDERER"
        }
        self.bodies: Mapping[str, int] = {
            ROBOT: self.robot.body,
            ROBOT_BASE: self.robot.base_body,
            **self.scene.blocks,
            TABLE: self.scene.table,
            FLOOR: self.scene.floor,
        }
        self.links: Mapping[str, Mapping[str, int]] = {name: self._links(body) for name, body in self.bodies.items()}
        self._things = {
            (self.bodies[body], link): Contact(body, name)
            for body, links in self.links.items()
            for name, link in links.items()
        }

    def reset(self, robot_obs: ArrayLike | None, scene_obs: ArrayLike) -> None:
        """Put robot and scene where observations have them, and simulate one 240th of a second.

        Args:
            robot_obs: float64 `[15]`, see `robot_obs`; of it, the joints and the opening width are used. None takes
                the robot's initial pose.
            scene_obs: float64 `[24]`, see `scene_obs`.

        Raises:
            ConfigError: an observation has another size, is not finite, or has a light between on and off.
            SimulatorError: the simulation broke.
        """
        robot = None if robot_obs is None else finite_vector(robot_obs, "robot_obs", ROBOT_OBS_DIM).astype(np.float64)
        self.scene.reset(finite_vector(scene_obs, "scene_obs", SCENE_OBS_DIM).astype(np.float64))
        self.robot.reset(robot)
        self.client.stepSimulation()

    def paint(self, looks: Mapping[str, Look]) -> None:
        """Give links of the table other looks; what is simulated stays as it was.

        Args:
            looks: link -> its look.

        Raises:
            SimulatorError: a texture cannot be loaded.
        """
        with guarded("painting the table"):
            textures = {look.texture: self.client.loadTexture(str(look.texture)) for look in looks.values()}
            for link, look in looks.items():
                self.client.changeVisualShape(
                    self.scene.table,
                    self.links[TABLE][link],
                    textureUniqueId=textures[look.texture],
                    rgbaColor=(*look.colour, 1),
                )

    def step(self, action: ArrayLike) -> None:
        """Execute one relative action, a 30th of a second.

        Args:
            action: `[7]`: the commanded position moves by 2 cm and the commanded Euler angles by 0.05 rad times these
                numbers (world frame); gripper +1 open, -1 close. float32 is scaled in float32, as the original does.

        Raises:
            ConfigError: it has another size, is not finite, or its gripper is neither -1 nor +1.
            SimulatorError: the physics diverged.
        """
        self.robot.move_by(check_action(action))
        self._advance()

    def step_to(self, position: ArrayLike, orientation: ArrayLike, gripper: float) -> None:
        """Execute one absolute action, a 30th of a second. Later relative actions do not start from it.

        Args:
            position: `[3]` of the point between the fingertips, m, world frame.
            orientation: Euler xyz `[3]` (rad) or quaternion `[4]` (x, y, z, w).
            gripper: +1 opens, -1 closes.

        Raises:
            ConfigError: wrong sizes, numbers that are not finite, or another gripper.
            SimulatorError: the physics diverged.
        """
        check_gripper(gripper)
        self.robot.move_to(*check_pose(position, orientation), gripper)
        self._advance()

    def robot_obs(self) -> NDArray[np.float64]:
        """Return what the robot senses.

        Returns:
            float64 `[15]`: position of the point between the fingertips (m, world frame), its Euler angles (rad),
            opening width (m), seven joints (rad), last gripper action (+1 or -1).
        """
        return self.robot.obs()

    def scene_obs(self) -> NDArray[np.float64]:
        """Return where everything else is.

        Returns:
            float64 `[24]`: slider, drawer, button, switch (m), lightbulb, led (0 or 1), then position (m, world frame)
            and Euler angles (rad) of every block, in the order of `config.blocks`.
        """
        return self.scene.obs()

    def info(self) -> Info:
        """Return what `tasks.solved` compares, and experts may read."""
        return self.scene.info(self.robot.body, self._things)

    def draw(self, camera: str) -> NDArray[np.uint8]:
        """Draw what `static` or `gripper` sees now: uint8 `[H, W, 3]`, RGB, upright.

        Raises:
            SimulatorError: the renderer broke.
        """
        with guarded(f"camera {camera}"):
            return self.cameras[camera].draw(self._size)

    def link_box(self, body: str, link: str) -> NDArray[np.float64]:
        """Return the axis-parallel box around a link's collision shape: float64 `[2, 3]`, lower and upper corner, m."""
        return np.array(self.client.getAABB(self.bodies[body], self.links[body][link]))

    def close(self) -> None:
        """Release the simulation and its renderer. Closing twice does nothing."""
        if self.client.isConnected():
            with guarded("closing"):
                self.client.disconnect()

    def _start_physics(self) -> None:
        self.client.resetSimulation()
        self.client.setPhysicsEngineParameter(deterministicOverlappingPairs=1)
        self.client.setTimeStep(1.0 / PHYSICS_HZ)
        self.client.resetSimulation()
        self.client.setGravity(0, 0, _GRAVITY)

    def _advance(self) -> None:
        for _ in range(PHYSICS_HZ // CONTROL_HZ):
            self.client.stepSimulation()
        self.scene.step()
        if not np.isfinite(self.robot.tcp()).all():
            raise SimulatorError(f"CALVIN scene {self.config.name}: the physics diverged.")

    def _links(self, body: int) -> dict[str, int]:
        joints = [self.client.getJointInfo(body, joint) for joint in range(self.client.getNumJoints(body))]
        return {joint[12].decode(): joint[0] for joint in joints} | {_BASE_LINK[1]: _BASE_LINK[0]}
