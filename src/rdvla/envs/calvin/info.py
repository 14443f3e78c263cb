"""What the simulator knows of a moment: enough to say what has been achieved since another one."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROBOT = "robot"
ROBOT_BASE = "robot_base"
TABLE = "table"
FLOOR = "floor"


@dataclass(frozen=True)
class Contact:
    """Something that is touched.

    Attributes:
        body: `robot`, `robot_base`, `table`, `floor`, or the name of a block.
        link: name of the touched link; `base_link` for a body without joints.
    """

    body: str
    link: str


@dataclass(frozen=True)
class BlockInfo:
    """A block; world frame.

    Attributes:
        position: float64 `[3]`, m.
        quaternion: float64 `[4]`, x, y, z, w.
        linear_velocity: float64 `[3]`, m/s.
        angular_velocity: float64 `[3]`, rad/s.
        contacts: what touches it.
    """

    position: NDArray[np.float64]
    quaternion: NDArray[np.float64]
    linear_velocity: NDArray[np.float64]
    angular_velocity: NDArray[np.float64]
    contacts: frozenset[Contact]

    @property
    def touching(self) -> frozenset[str]:
        """Names of the bodies that touch it."""
        return frozenset(contact.body for contact in self.contacts)


@dataclass(frozen=True)
class Info:
    """A moment of the play table.

    Attributes:
        touched: names of the bodies that the robot touches.
        blocks: name -> block.
        doors: `base__slide` and `base__drawer` -> position of the joint, m.
        lights: `lightbulb` and `led` -> whether it is lit.
    """

    touched: frozenset[str]
    blocks: Mapping[str, BlockInfo]
    doors: Mapping[str, float]
    lights: Mapping[str, bool]
