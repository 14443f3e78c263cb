"""The hand: moves made of relative actions.

A skill is a generator of `Move`s; it reads the scene whenever it likes and ends when it is through, successful or not.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rdvla.experts.calvin.table import PlayTable, Point

OPEN, CLOSED = 1.0, -1.0
HOME_YAW = 1.5
"""How the hand is turned when a chain begins: the fingers close along x; rad."""
MIN_YAW, MAX_YAW = -1.3, 4.4
"""What the arm's last joint allows, rad."""
TRAVEL = 0.58
"""Height at which nothing on the table is in the way, m."""
FRONT = -0.13
"""In front of what sticks out of the table's back wall, y in m."""
UNDER_HANDLE = -0.09
"""Beyond, y in m, the upright hand would meet the slider's handle."""

_BACK = -0.06  # beyond, y in m, the table's back wall is near
_NEAR = 0.03  # m; no detour for less
_PASSING, _ARRIVED = 0.03, 0.012  # m; a point on the way, and where a detour ends
_STEP, _TURN = 0.02, 0.05  # an action of 1 in m and rad
_GAIN = 0.5  # share of the rest of the way that a step goes
_DOWN = np.pi
_TURNED = 0.08  # rad
_PATIENCE = 15  # see `Hand.go`
_UPRIGHT = 0.7  # m from the robot's foot, as far as the upright hand reaches
_LEAN, _MOST = 4.0, 0.6  # rad per m beyond, and at most
_TO_WALL, _MOST_TO_WALL = 6.0, 0.35  # rad per m beyond, and at most
_AHEAD = 0.1  # m that the commanded position may be ahead of a hand that is held up


class Move(NamedTuple):
    """One control step.

    Attributes:
        action: float32 `[7]`.
        precise: whether it needs accuracy.
    """

    action: NDArray[np.float32]
    precise: bool


Moves = Iterator[Move]


class Hand:
    """Moves the commanded pose in straight lines.

    Attributes:
        gripper: what is commanded, open or closed.
    """

    def __init__(self, table: PlayTable, gripper: float) -> None:
        self._table = table
        self.gripper = gripper
        roll, pitch, yaw = table.commanded[1]
        self.yaw = float(yaw)
        self.tilt = -float(pitch)
        self.roll = float(_wrap(_DOWN - roll))

    def go(
        self,
        position: ArrayLike,
        *,
        yaw: float | None = None,
        tilt: float | None = None,
        roll: float | None = None,
        speed: float = 1.0,
        within: float = 0.006,
        precise: bool = False,
        patience: int = _PATIENCE,
        until: Callable[[], bool] = lambda: False,
    ) -> Moves:
        """Move in a straight line until there, or as near as it gets.

        Args:
            position: where to, `[3]`.
            yaw: how to be turned; None keeps it.
            tilt: angle by which the fingers point forward, rad; None keeps it.
            roll: angle by which they point to the side, to the right at the usual yaw, rad; None keeps it.
            speed: in (0, 1], of 2 cm per step.
            within: how near is there, m.
            precise: whether this needs accuracy.
            patience: steps more than the way needs, before a move that does not get there ends.
            until: ends the move early.
        """
        self.yaw = self.yaw if yaw is None else yaw
        self.tilt = self.tilt if tilt is None else tilt
        self.roll = self.roll if roll is None else roll
        goal = np.asarray(position, dtype=np.float64)
        commanded, euler = self._table.commanded
        turn = np.abs(self._turn(euler)).max() / _TURN
        steps = int(max(np.linalg.norm(goal - commanded) / (_STEP * speed), turn)) + patience
        for _ in range(steps):
            if until() or self._is_at(goal, within):
                return
            yield Move(self._towards(goal, speed), precise)

    def shift(self, way: ArrayLike, *, speed: float = 1.0, within: float = 0.006) -> Moves:
        """Move by `way` `[3]` from where the hand is; see `go`."""
        return self.go(self._table.hand + np.asarray(way), speed=speed, within=within)

    def travel(self, position: ArrayLike, *, yaw: float = HOME_YAW, tilt: float = 0.0, roll: float = 0.0) -> Moves:
        """Move somewhere above or in front of everything: up, over and there.

        Args:
            position: where to, `[3]`; of a place in the back wall, a point from which it is reached from the front.
            yaw: how to be turned there.
            tilt: angle by which the fingers point forward there, rad.
            roll: angle by which they point to the side there, rad.
        """
        goal = np.asarray(position, dtype=np.float64)
        here = self._table.hand
        if np.hypot(*(goal - here)[:2]) > _NEAR:
            height = max(TRAVEL, goal[2])
            if here[1] > _BACK:
                yield from self.go([here[0], FRONT, max(height, here[2] + 0.04)], within=_PASSING)
            elif here[2] < height - _PASSING:
                yield from self.go([*here[:2], height], within=_PASSING)
            over = [goal[0], min(goal[1], FRONT) if goal[1] > _BACK else goal[1], height]
            yield from self.go(over, yaw=yaw, tilt=tilt, roll=roll, within=_PASSING)
        yield from self.go(goal, yaw=yaw, tilt=tilt, roll=roll, within=_ARRIVED)

    def close(self, steps: int = 10) -> Moves:
        """Close the fingers where the hand is."""
        return self._stay(CLOSED, steps)

    def open(self, steps: int = 6) -> Moves:
        """Open the fingers where the hand is."""
        return self._stay(OPEN, steps)

    def _stay(self, gripper: float, steps: int) -> Moves:
        self.gripper = gripper
        goal, _ = self._table.commanded
        for _ in range(steps):
            yield Move(self._towards(goal, 1.0), True)

    def _is_at(self, goal: Point, within: float) -> bool:
        turned = within >= _PASSING or np.abs(_wrap(self._turn(self._table.euler))).max() < _TURNED
        return bool(turned and np.linalg.norm(self._table.hand - goal) < within)

    def _turn(self, euler: Point) -> Point:
        return np.array([float(_wrap(_DOWN - self.roll - euler[0])), -self.tilt - euler[1], self.yaw - euler[2]])

    def _towards(self, goal: Point, speed: float) -> NDArray[np.float32]:
        commanded, euler = self._table.commanded
        way = goal - commanded
        distance = float(np.linalg.norm(way))
        if distance > 0:
            way *= min(speed * _STEP, distance * _GAIN) / distance
        ahead = commanded + way - self._table.hand
        way -= ahead * max(0.0, 1 - _AHEAD / max(float(np.linalg.norm(ahead)), _AHEAD))
        way /= max(_STEP, float(np.linalg.norm(way)))
        turn = np.clip(self._turn(euler) * _GAIN / _TURN, -1, 1)
        return np.array([*way, *turn, self.gripper], dtype=np.float32)


def lean(table: PlayTable, position: Point) -> tuple[float, float]:
    """Return by which angles to x and y, rad, the fingers of a hand have to point to get to a place on the table.

    Where the upright hand does not reach, they point away from the robot; near the back wall they point to it, so that
    the hand stays in front of the slider's handle. Elsewhere both are 0.
    """
    distance, direction = table.away(position)
    far = np.clip(_LEAN * (distance - _UPRIGHT), 0, _MOST)
    to_wall = np.clip(_TO_WALL * (position[1] - UNDER_HANDLE), 0, _MOST_TO_WALL)
    return float(far * np.cos(direction)), float(far * np.sin(direction) + to_wall)


def pointing(x: float, y: float, yaw: float = HOME_YAW) -> tuple[float, float]:
    """Return tilt and roll of a hand turned by `yaw` whose fingers point to x and y by these angles; all in rad."""
    right = yaw - np.pi / 2
    return float(y * np.cos(right) - x * np.sin(right)), float(x * np.cos(right) + y * np.sin(right))


def _wrap(angles: ArrayLike) -> NDArray[np.float64]:
    """Return the same angles in [-pi, pi)."""
    return (np.asarray(angles, dtype=np.float64) + np.pi) % (2 * np.pi) - np.pi
