"""What an expert reads of the play table. Positions in m, world frame; x to the right, y away from the robot, z up."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rdvla.envs.calvin.env import CalvinEnv
from rdvla.envs.calvin.info import ROBOT, TABLE, Contact

Point = NDArray[np.float64]

EDGE = -0.181
"""Where the table ends in front, y in m."""

_NARROW = 0.1  # m; less is no compartment
_SIDE, _FRONT = 0.05, 0.115  # m from the box around the drawer to the inside of its side and front walls


@dataclass(frozen=True)
class Block:
    """A block as it lies.

    Attributes:
        name: `block_red`, `block_blue` or `block_pink`.
        position: of its centre, `[3]`.
        axes: rotation matrix `[3, 3]`; its columns are the block's own axes.
        half: half of its size along these axes, `[3]`.
        contacts: what touches it.
    """

    name: str
    position: Point
    axes: Point
    half: Point
    contacts: frozenset[Contact]

    @property
    def bodies(self) -> frozenset[str]:
        """Names of the bodies that touch it."""
        return frozenset(contact.body for contact in self.contacts)

    def reach(self, direction: Point) -> float:
        """Return how far it extends from its centre along a unit vector `[3]`."""
        return float(np.abs(self.axes.T @ direction) @ self.half)


class PlayTable:
    """The running simulation of a `CalvinEnv`."""

    def __init__(self, env: CalvinEnv) -> None:
        self._env = env
        self._simulation = env.simulation
        self.surfaces = self._simulation.config.surfaces
        client, bodies = self._simulation.client, self._simulation.bodies
        self._halves = {
            name: np.array(client.getCollisionShapeData(bodies[name], -1)[0][3]) / 2
            for name in self._simulation.scene.blocks
        }

    @property
    def task(self) -> str:
        """Name of the task to be solved now."""
        return self._env.stages[min(self._env.stage_index, len(self._env.stages) - 1)].name

    @property
    def commanded(self) -> tuple[Point, Point]:
        """The commanded pose of the fingertips, which relative actions move: position `[3]`, Euler angles `[3]`."""
        return self._simulation.robot.target_position.copy(), self._simulation.robot.target_euler.copy()

    @property
    def hand(self) -> Point:
        """Where the point between the fingertips is, `[3]`."""
        return np.array(self._simulation.robot.tcp()[0])

    @property
    def euler(self) -> Point:
        """How the hand is turned: Euler angles xyz `[3]`, rad."""
        return np.array(self._simulation.robot.tcp()[1])

    @property
    def blocks(self) -> dict[str, Block]:
        """The blocks by name."""
        found = {}
        for name, block in self._simulation.info().blocks.items():
            axes = np.array(self._simulation.client.getMatrixFromQuaternion(block.quaternion)).reshape(3, 3)
            found[name] = Block(name, block.position, axes, self._halves[name], block.contacts)
        return found

    @property
    def held(self) -> Block | None:
        """The block in the hand, if there is one."""
        return next((block for block in self.blocks.values() if block.bodies == {ROBOT}), None)

    @property
    def carried(self) -> str | None:
        """Name of the block that was in the hand when the task began."""
        began = self._env.stage_start.blocks
        return next((name for name, block in began.items() if block.touching == {ROBOT}), None)

    @property
    def untouched(self) -> frozenset[str]:
        """Names of the blocks that touched nothing but the table when the task began."""
        began, alone = self._env.stage_start.blocks, {Contact(TABLE, "base_link")}
        return frozenset(name for name, block in began.items() if block.contacts == alone)

    @property
    def stacked(self) -> str | None:
        """Name of the block that lay on others alone when the task began."""
        began = self._env.stage_start.blocks
        return next((name for name, block in began.items() if block.touching and block.touching <= began.keys()), None)

    def away(self, position: Point) -> tuple[float, float]:
        """Return how far `position` `[3]` is from the robot's foot, m, and in which direction, rad from x to y."""
        x, y = (position - self._simulation.config.robot.base_position)[:2]
        return float(np.hypot(x, y)), float(np.arctan2(y, x))

    def box(self, link: str) -> Point:
        """Return the axis-parallel box around a link of the table: `[2, 3]`, lower and upper corner."""
        return self._simulation.link_box(TABLE, link)

    def drawer(self) -> Point:
        """Return the inside of the drawer, as far as the table does not cover it: `[2, 2]`, lower and upper x and y."""
        lower, upper = self.box("drawer_link")
        return np.array([[lower[0] + _SIDE, lower[1] + _FRONT], [upper[0] - _SIDE, EDGE]])

    @property
    def drawer_way(self) -> float:
        """How far the drawer can still be pulled out, m."""
        door = self._simulation.scene.doors["base__drawer"]
        return self._simulation.config.doors["base__drawer"].end - door.position()

    def gap(self, x: float) -> tuple[float, float]:
        """Return where the compartment beside the slider that is nearest to `x` begins and ends, x in m."""
        (left, _, _), (right, _, _) = self.box("plank_link")
        lower, upper = self.box("slide_link")
        if (x < (lower[0] + upper[0]) / 2 and lower[0] - left > _NARROW) or right - upper[0] < _NARROW:
            return left, lower[0]
        return upper[0], right
