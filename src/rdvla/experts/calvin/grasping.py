"""Taking a block from wherever it lies, and putting it down."""

from collections.abc import Sequence

import numpy as np

from rdvla.envs.calvin.info import ROBOT
from rdvla.experts.calvin.hand import HOME_YAW, MAX_YAW, MIN_YAW, OPEN, Hand, Moves, lean, pointing
from rdvla.experts.calvin.table import EDGE, Block, PlayTable, Point

_WIDEST = 0.068  # m between the fingers
_PLANK_FRONT = 0.0  # beyond, y in m, are the compartments
_LEANS = (0.0, 0.45, 0.3)  # rad, one attempt after the other
_LEVEL = 3.0  # what a lean towards one finger costs, in rad of turning
_CLEAR = 0.018  # m between a finger's middle and another block
_PRESSING = 500.0  # what a finger inside another block costs, in rad of turning per m: it pushes that into the table
_FINGER = 0.055  # m from the middle of the open hand to a finger's middle
_TIGHT = 0.005  # m that a finger may be inside a wall for that: walls give way, or blocks do
_OFF_CENTRE = 0.012  # m at most from a block's centre to the middle of the hand
_IN_COMPARTMENT, _BELOW_EDGE = 0.35, 0.4  # rad, to y: in a compartment, and in the drawer below the table's edge
_WAITS = 6  # further steps before it closes where it is: nobody sees why a hand that is around a block waits longer
_SUNK = 0.42  # below, z in m, a block lies in the drawer
_ABOVE = np.array([0.0, 0.0, 0.1])
_OUT = np.array([0.0, -0.12, 0.11])


def grasp(table: PlayTable, hand: Hand, name: str, attempt: int = 0, turn: float = 0.0) -> Moves:
    """Take a block.

    Args:
        table: what is there.
        hand: the hand.
        name: the block.
        attempt: how often this was tried before; other grasps come first then.
        turn: by how much the block will be turned then, rad.
    """
    hand.gripper = OPEN
    block = table.blocks[name]
    yaws = grasp_yaws(table, block, turn)
    tries = len(_LEANS) if block.position[1] > _PLANK_FRONT else 1
    yaw = yaws[attempt // tries % len(yaws)]
    tilt, roll = _lean(table, block, yaw, attempt)
    yield from hand.travel(block.position + way_out(block), yaw=yaw, tilt=tilt, roll=roll)
    block = table.blocks[name]  # it may have been sliding
    place = block.position + np.array([*_aside(table, block, yaw)[0], 0.004])
    yield from hand.go(place, speed=0.6, precise=True, patience=_WAITS)
    yield from hand.close(9)


def way_out(block: Block) -> Point:
    """Return the way from a block to where nothing is around it: up, or forward and up from a compartment."""
    if block.position[1] > _PLANK_FRONT:
        return _OUT
    return _ABOVE


def has_room(table: PlayTable, block: Block) -> bool:
    """Return whether the fingers find room beside a block, however the hand is turned for it."""
    return _aside(table, block, grasp_yaws(table, block)[0])[1] < _TIGHT


def _room(table: PlayTable, block: Block) -> Point:
    """Return what walls leave free around a block: `[2, 2]`, the lower and upper x and y, m."""
    room = np.array([[-np.inf, -np.inf], [np.inf, np.inf]])
    if block.position[1] > _PLANK_FRONT:
        room[:, 0] = table.gap(block.position[0])
    elif block.position[2] < _SUNK:
        room = table.drawer()
    return room


def _aside(table: PlayTable, block: Block, yaw: float) -> tuple[Point, float]:
    """Return where beside a block's centre to grasp it so that no finger meets a wall, and how deep one still does.

    Returns:
        The way from the centre to the hand's middle, x and y `[2]`, and the depth; in m.
    """
    low, high = _room(table, block)
    fingers = _FINGER * np.abs([np.sin(yaw), np.cos(yaw)]) + _CLEAR
    beyond_low, beyond_high = low + fingers - block.position[:2], block.position[:2] + fingers - high
    aside = np.clip(beyond_low, 0, _OFF_CENTRE) - np.clip(beyond_high, 0, _OFF_CENTRE)
    return aside, max(0.0, *(beyond_low - aside), *(beyond_high + aside))


def _lean(table: PlayTable, block: Block, yaw: float, attempt: int) -> tuple[float, float]:
    """Return tilt and roll for a grasp.

    In a compartment the hand comes from the front and, if need be, away from the nearer wall; below the table's edge
    it comes from the front; elsewhere it leans where it must to reach.
    """
    x, y = lean(table, block.position)
    if block.position[1] > _PLANK_FRONT:
        low, high = table.gap(block.position[0])
        side = _LEANS[attempt % len(_LEANS)]
        x, y = side if high - block.position[0] < block.position[0] - low else -side, _IN_COMPARTMENT
    elif block.position[2] < _SUNK and block.position[1] > EDGE - 0.05:
        y = _BELOW_EDGE
    return pointing(x, y, yaw)


def grasp_yaws(table: PlayTable, block: Block, turn: float = 0.0) -> list[float]:
    """Return the ways to turn the hand for a grasp, best first.

    The fingers close across a side that fits between them. The best are near the usual turn, before and after
    turning by `turn`, with no other block or wall of the drawer where the fingers come down, and both fingers at the
    same height.
    """
    others = [other for other in table.blocks.values() if other.name != block.name]
    found = []
    for axis, half in zip(block.axes.T, block.half, strict=True):
        if abs(axis[2]) > 0.5 or 2 * half > _WIDEST:
            continue
        across = np.arctan2(axis[1], axis[0])  # the fingers close along yaw - pi / 2
        for yaw in across + np.pi / 2 + np.pi * np.arange(-2, 3):
            if min(yaw, yaw + turn) >= MIN_YAW and max(yaw, yaw + turn) <= MAX_YAW:
                slant = 0.0 if block.position[1] > _PLANK_FRONT else abs(pointing(*lean(table, block.position), yaw)[1])
                in_wall = 0.0 if block.position[1] > _PLANK_FRONT else _pressed(_aside(table, block, yaw)[1])
                cost = _cost(block, others, yaw) + in_wall + abs(yaw + turn / 2 - HOME_YAW) + _LEVEL * slant
                found.append((cost, yaw))
    return [yaw for _, yaw in sorted(found)] or [HOME_YAW]


def _cost(block: Block, others: Sequence[Block], yaw: float) -> float:
    """Return 10 for every finger that would come down on another block, and more the further it is inside."""
    across = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    cost = 0.0
    for side in (-1, 1):
        finger = block.position + side * _FINGER * across
        for other in others:
            depth = _CLEAR - (np.abs(other.axes.T @ (finger - other.position)) - other.half).max()
            cost += _pressed(depth)
    return cost


def _pressed(depth: float) -> float:
    """Return what it costs that a finger comes down `depth`, m, inside something."""
    return 10.0 + _PRESSING * depth if depth > 0 else 0.0


def put_down(table: PlayTable, hand: Hand, block: Block, place: Point) -> Moves:
    """Put a held block down at `place` `[3]`, coming from above, or from the front into a compartment."""
    offset = table.hand - block.position
    offset[2] = 0
    way = _OUT if place[1] > _PLANK_FRONT else _ABOVE
    start = place + offset + way
    yield from hand.travel(start, yaw=hand.yaw, tilt=hand.tilt, roll=hand.roll)
    yield from hand.go(
        place + offset - [0, 0, 0.03],
        speed=0.4,
        precise=True,
        until=lambda: bool(table.blocks[block.name].bodies - {ROBOT}),
    )
    yield from hand.open()
    yield from hand.shift(0.6 * way)
