"""The table with its drawer, slider, button, switch and lights, and three blocks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdvla.envs.calvin.assets import LightConfig, SceneConfig, TriggerConfig
from rdvla.envs.calvin.info import BlockInfo, Contact, Info
from rdvla.errors import ConfigError

OBS_DIM = 24

_FRICTION = 4
_UNLIT = (1, 1, 1, 1)
_LOADING_SEED = 0


class Joint:
    """A joint of the table, moved by hand."""

    def __init__(self, client: Any, body: int, index: int, initial: float) -> None:
        """Give it friction."""
        self._client, self._body, self.index, self.initial = client, body, index, initial
        client.setJointMotorControl2(body, index, client.VELOCITY_CONTROL, force=_FRICTION)

    def reset(self, position: float) -> None:
        """Move it there at once."""
        self._client.resetJointState(self._body, self.index, position)

    def position(self) -> float:
        """Return where it is, m."""
        return float(self._client.getJointState(self._body, self.index)[0])


class Light:
    """A link of the table whose colour says whether it is lit."""

    def __init__(self, client: Any, body: int, link: int, config: LightConfig) -> None:
        """Start unlit."""
        self._client, self._body, self._link, self._colour = client, body, link, config.colour
        self.lit = False

    def set(self, lit: bool) -> None:
        """Switch it on or off."""
        self.lit = lit
        self._client.changeVisualShape(self._body, self._link, rgbaColor=self._colour if lit else _UNLIT)


class Trigger(Joint, ABC):
    """A joint that works a light: what counts is on which side of the middle of its range it is."""

    def __init__(self, client: Any, body: int, index: int, config: TriggerConfig, light: Light) -> None:
        """Work `light`."""
        super().__init__(client, body, index, config.initial)
        lower, upper = client.getJointInfo(body, index)[8:10]
        self._middle = float(lower + upper) / 2
        self._light = light

    @property
    def pressed(self) -> bool:
        """Whether it is on the other side than at rest."""
        if self.initial <= self._middle:
            return self.position() > self._middle
        return self.position() < self._middle

    @abstractmethod
    def step(self) -> None:
        """Work the light; belongs after the physics of every control step."""


class Switch(Trigger):
    """Lights while it is pressed. Its memory starts at "off" with every reset, wherever it is put."""

    def __init__(self, client: Any, body: int, index: int, config: TriggerConfig, light: Light) -> None:
        """Start off."""
        super().__init__(client, body, index, config, light)
        self._on = False

    def reset(self, position: float) -> None:
        """Move it there; the light follows with the next step."""
        super().reset(position)
        self._on = False

    def step(self) -> None:
        """Let the light follow a change."""
        if self.pressed != self._on:
            self._on = self.pressed
            self._light.set(self._on)


class Button(Trigger):
    """Springs back; every new press switches its light. Whether it was pressed survives a reset."""

    def __init__(self, client: Any, body: int, index: int, config: TriggerConfig, light: Light) -> None:
        """Add the spring."""
        super().__init__(client, body, index, config, light)
        client.setJointMotorControl2(
            body, index, client.POSITION_CONTROL, targetPosition=config.initial, force=_FRICTION
        )
        self._was_pressed = self.pressed

    def step(self) -> None:
        """Switch the light with a new press."""
        pressed = self.pressed
        if pressed and not self._was_pressed:
            self._light.set(not self._light.lit)
        self._was_pressed = pressed


class Scene:
    """Everything but the robot."""

    def __init__(self, client: Any, config: SceneConfig) -> None:
        """Load blocks, table and floor into `client`, in this order; blocks lie somewhere until `reset`."""
        self._client = client
        self._config = config
        rng = np.random.default_rng(_LOADING_SEED)
        self.blocks = {
            name: self._load(file, *self._random_pose(rng), config.scaling) for name, file in config.blocks.items()
        }
        orientation = client.getQuaternionFromEuler(config.table_orientation)
        self.table = self._load(config.table, config.table_position, orientation, config.scaling)
        self._build_table()
        self.floor: int = client.loadURDF(str(config.data / "plane" / "plane.urdf"))

    def reset(self, obs: NDArray[np.float64]) -> None:
        """Put everything where an observation has it.

        Velocities of blocks survive, as in the published simulator; start from a new simulation to be without them.

        Args:
            obs: float64 `[24]`.

        Raises:
            ConfigError: a light is neither 0 nor 1.
        """
        sizes = [len(group) for group in (self.doors, self.buttons, self.switches, self.lights)]
        doors, buttons, switches, lights, blocks = np.split(obs, np.cumsum(sizes))
        if not np.isin(lights, (0, 1)).all():
            raise ConfigError(f"scene_obs[4:6] = {lights.tolist()}: a light is 0 (off) or 1 (on).")
        for door, position in zip(self.doors.values(), doors, strict=True):
            door.reset(position)
        for light, lit in zip(self.lights.values(), lights, strict=True):
            light.set(bool(lit))
        for trigger, position in zip((*self.buttons, *self.switches), (*buttons, *switches), strict=True):
            trigger.reset(position)
        for body, pose in zip(self.blocks.values(), np.split(blocks, len(self.blocks)), strict=True):
            quaternion = self._client.getQuaternionFromEuler(pose[3:])
            self._client.resetBasePositionAndOrientation(body, pose[:3], quaternion)

    def step(self) -> None:
        """Let buttons and switches work their lights; belongs after the physics of every control step."""
        for trigger in (*self.buttons, *self.switches):
            trigger.step()

    def obs(self) -> NDArray[np.float64]:
        """Return float64 `[24]`: doors, button, switch (m), lights (0 or 1), then each block's position and Euler."""
        joints = (*self.doors.values(), *self.buttons, *self.switches)
        values = [joint.position() for joint in joints] + [float(light.lit) for light in self.lights.values()]
        for body in self.blocks.values():
            position, quaternion = self._client.getBasePositionAndOrientation(body)
            values += [*position, *self._client.getEulerFromQuaternion(quaternion)]
        return np.array(values)

    def info(self, robot: int, things: Mapping[tuple[int, int], Contact]) -> Info:
        """Return what the oracle and experts see.

        Args:
            robot: the robot's body.
            things: (body, link) -> its names, of everything there is.
        """
        touched = {things[point[2], point[4]].body for point in self._client.getContactPoints(bodyA=robot)}
        return Info(
            touched=frozenset(touched),
            blocks={name: self._block_info(body, things) for name, body in self.blocks.items()},
            doors={name: door.position() for name, door in self.doors.items()},
            lights={name: light.lit for name, light in self.lights.items()},
        )

    def _block_info(self, body: int, things: Mapping[tuple[int, int], Contact]) -> BlockInfo:
        position, quaternion = self._client.getBasePositionAndOrientation(body)
        linear, angular = self._client.getBaseVelocity(body)
        contacts = {things[point[2], point[4]] for point in self._client.getContactPoints(bodyA=body)}
        return BlockInfo(
            position=np.array(position),
            quaternion=np.array(quaternion),
            linear_velocity=np.array(linear),
            angular_velocity=np.array(angular),
            contacts=frozenset(contacts),
        )

    def _build_table(self) -> None:
        client, config, table = self._client, self._config, self.table
        facts = [client.getJointInfo(table, index) for index in range(client.getNumJoints(table))]
        joints = {fact[1].decode(): fact[0] for fact in facts}
        links = {fact[12].decode(): fact[0] for fact in facts}
        self.doors = {name: Joint(client, table, joints[name], door.initial) for name, door in config.doors.items()}
        self.lights = {name: Light(client, table, links[light.link], light) for name, light in config.lights.items()}
        self.buttons = [
            Button(client, table, joints[name], button, self.lights[button.light])
            for name, button in config.buttons.items()
        ]
        self.switches = [
            Switch(client, table, joints[name], switch, self.lights[switch.light])
            for name, switch in config.switches.items()
        ]

    def _random_pose(self, rng: np.random.Generator) -> tuple[Any, Any]:
        surface = rng.choice(list(self._config.surfaces))
        position = rng.uniform(*self._config.surfaces[surface])
        yaw = rng.uniform([0, 0, -np.pi], [0, 0, np.pi])
        return position, self._client.getQuaternionFromEuler(yaw)

    def _load(self, file: str, position: Any, orientation: Any, scaling: float) -> int:
        path = str(self._config.data / file)
        body: int = self._client.loadURDF(path, position, orientation, globalScaling=scaling)
        return body
