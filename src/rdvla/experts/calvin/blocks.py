"""Skills for blocks: lift, put somewhere, stack, unstack, turn and push."""

from collections.abc import Generator

import numpy as np

from rdvla.envs.calvin.info import ROBOT, TABLE
from rdvla.experts.calvin.furniture import move_slider, open_drawer
from rdvla.experts.calvin.grasping import grasp, has_room, put_down, way_out
from rdvla.experts.calvin.hand import CLOSED, FRONT, TRAVEL, UNDER_HANDLE, Hand, Move, Moves, lean, pointing
from rdvla.experts.calvin.table import EDGE, Block, PlayTable, Point

_TURN = np.radians(78)
_PUSH = 0.11  # m
_FREE = 0.01  # m above the table where a block is turned: it falls, and nothing touches it when it is down
_SLIDE = 0.06  # m that a shoved block may need beyond
_FINGER = 0.028  # m from a block's side to the closed fingers beside it
_APART = 0.1  # m between the centres of blocks that are not in each other's way
_MIDDLE = -0.09  # y in m of the table's middle
_OVER = 0.012  # m that a block's centre is beyond the edge over which it tips
_BETWEEN = 0.045  # m from the hand to a block between its fingers
_TAKEN = 0.022  # m from the hand to a block that it has taken
_BESIDE = 0.08  # m on either side of the slider where it is in the way
_TURNED_FOR = 4  # steps more than turning takes before a block is let go: nobody sees why a hand would wait longer
_AT_END = 0.03  # m that a slider at its end lacks to it
_BESIDE_WALL = 0.06  # m from the drawer's side walls, where a hand gets around a block
_TO_OPEN = 0.03  # m that the drawer lacks to be opened further
_HANDLE, _HAND = 0.06, 0.06  # m taken by the drawer's handle and by the hand


def lift(table: PlayTable, hand: Hand, name: str, attempt: int) -> Moves:
    """Lift a block from wherever it lies, after moving the slider away or opening the drawer further if need be."""
    block = table.blocks[name]
    if block.position[1] > 0:
        yield from _uncover(table, hand, block)
    elif not has_room(table, block) and table.drawer_way > _TO_OPEN:
        yield from open_drawer(table, hand)
        yield from hand.open()
        yield from hand.go([*table.hand[:2], TRAVEL])
    yield from grasp(table, hand, name, attempt)
    yield from hand.shift(0.8 * way_out(block), speed=0.7)


def rotate(table: PlayTable, hand: Hand, name: str, attempt: int, side: float) -> Moves:
    """Turn a block where it lies, to the left (`side` +1, counterclockwise) or to the right (-1)."""
    turn = side * _TURN
    yield from grasp(table, hand, name, attempt, turn)
    yield from hand.go(table.hand + np.array([0, 0, _FREE]), yaw=hand.yaw + turn, patience=_TURNED_FOR)
    yield from hand.open()
    yield from hand.shift([0, 0, 0.08])


def push(table: PlayTable, hand: Hand, name: str, attempt: int, side: float) -> Moves:
    """Push a block to the left (`side` -1) or right (+1); every second attempt carries it, past what stopped it."""
    block = table.blocks[name]
    way = np.array([side, 0, 0])
    if attempt % 2:
        place = block.position + _PUSH * way
        yield from grasp(table, hand, name, attempt // 2)
        yield from put_down(table, hand, table.blocks[name], place)
    else:
        yield from _sweep(table, hand, name, way, _PUSH, speed=_shove(table, block, side))
    yield from hand.shift([0, 0, 0.08])


def push_into_drawer(table: PlayTable, hand: Hand, attempt: int) -> Moves:
    """Push the block that is easiest to get there over the table's edge into the open drawer.

    The oracle wants one that touched nothing but the table when the task began.
    """
    left, right = table.drawer()[:, 0] + [_BESIDE_WALL, -_BESIDE_WALL]
    blocks = [block for block in table.blocks.values() if _is_on_table(block)]
    blocks = [block for block in blocks if block.name in table.untouched] or blocks
    if not blocks:
        return
    block = min(blocks, key=lambda block: abs(block.position[0] - np.clip(block.position[0], left, right)))
    x, y = np.clip(block.position[0], left, right), min(block.position[1], UNDER_HANDLE)
    if abs(x - block.position[0]) > 0.01 or abs(y - block.position[1]) > 0.03:
        # To where the hand is upright behind it: leaning, it would press the block into the table, where that sticks.
        y = min(y, max(UNDER_HANDLE - block.reach(np.array([0, 1.0, 0])) - _FINGER, EDGE + _OVER))
        yield from grasp(table, hand, block.name, attempt)
        block = table.blocks[block.name]
        if np.linalg.norm(block.position - table.hand) < _TAKEN:
            yield from hand.shift([x - block.position[0], y - block.position[1], 0], speed=0.4)
        yield from hand.open()
        yield from hand.shift([0, 0, 0.08])
        block = table.blocks[block.name]
        if abs(x - block.position[0]) > _BESIDE_WALL / 2:
            return  # it would fall beside the drawer; the next attempt takes it in another way
    yield from _sweep(table, hand, block.name, np.array([0, -1.0, 0]), block.position[1] - EDGE + 0.05)
    yield from hand.shift([0, 0, 0.08])


def stack(table: PlayTable, hand: Hand) -> Moves:
    """Put the held block on another one that lies on the table."""
    held = yield from _take_again(table, hand)
    if held is None:
        return
    below = min(
        (block for block in table.blocks.values() if block.name != held.name and TABLE in block.bodies),
        key=lambda block: (not _is_on_table(block), float(np.linalg.norm(block.position - held.position))),
        default=None,
    )
    if below is None:
        return
    up = np.array([0, 0, 1.0])
    place = below.position + (below.reach(up) + held.reach(up)) * up
    yield from put_down(table, hand, held, place)


def unstack(table: PlayTable, hand: Hand, attempt: int) -> Moves:
    """Tip a block over the edge of the one it lies on; later attempts lift it.

    Tipped, it leans on the table when that is solved, as the oracle wants it for being pushed or lifted next.
    """
    name = table.stacked
    if name is None:
        return
    top = table.blocks[name]
    below = next((table.blocks[other] for other in top.bodies if other in table.blocks), None)
    if attempt == 0 and below is not None:
        side = np.array([0, 1.0 if top.position[1] < _MIDDLE else -1.0, 0])
        way = float((below.position - top.position) @ side) + below.reach(side) + _OVER
        yield from _sweep(table, hand, name, side, way, speed=0.3)
    else:
        yield from grasp(table, hand, name, attempt)
    yield from hand.shift([0, 0, 0.08], speed=0.7)


def place_in_drawer(table: PlayTable, hand: Hand) -> Moves:
    """Put the held block into the open drawer."""
    held = yield from _take_again(table, hand)
    if held is None:
        return
    lower, upper = table.box("drawer_link")
    x = np.linspace(lower[0] + 0.13, upper[0] - 0.13, 12)
    y = (
        np.linspace(lower[1] + _HANDLE + _HAND, EDGE - _HAND, 4)
        if EDGE - lower[1] > 0.2
        else [(lower[1] + 0.05 + EDGE) / 2]
    )
    spots = [np.array([a, b, lower[2] + 0.05]) for a in x for b in y]
    yield from put_down(table, hand, held, _free_spot(table, held, spots))


def place_in_slider(table: PlayTable, hand: Hand) -> Moves:
    """Put the held block into the compartment that the slider leaves open."""
    held = yield from _take_again(table, hand)
    if held is None:
        return
    (left, front, _), (right, _, top) = table.box("plank_link")
    lower, upper = table.box("slide_link")
    low, high = max(((left, lower[0]), (upper[0], right)), key=lambda gap: gap[1] - gap[0])
    middle = (low + high) / 2
    spots = [np.array([x, front + 0.065, top + 0.02]) for x in middle + np.array([0, 0.03, -0.03, 0.06, -0.06])]
    yield from put_down(table, hand, held, _free_spot(table, held, spots))


def release(table: PlayTable, hand: Hand) -> Moves:
    """Put down what hangs in the air somewhere on the table, and leave what is between the fingers."""
    held = table.held
    if held is not None:
        (left, front, z), (right, back, _) = table.surfaces["table"]
        spots = [np.array([x, y, z]) for x in np.linspace(left, right, 12) for y in (front + 0.02, back - 0.03)]
        yield from put_down(table, hand, held, _free_spot(table, held, spots))
        return
    for block in table.blocks.values():
        if np.linalg.norm(block.position - table.hand) < _BETWEEN:
            yield from hand.open(6 if hand.gripper == CLOSED else 2)
            yield from hand.shift(0.7 * way_out(block), within=0.02)


def _take_again(table: PlayTable, hand: Hand) -> Generator[Move, None, Block | None]:
    """Take the block that the task began with in the hand, if it fell; return it as it is held."""
    if table.held is None and table.carried is not None:
        yield from grasp(table, hand, table.carried)
        yield from hand.shift(way_out(table.blocks[table.carried]), speed=0.7)
    return table.held


def _free_spot(table: PlayTable, held: Block, spots: list[Point]) -> Point:
    """Return the spot nearest to the held block that is far enough from others; else the one furthest from them."""
    others = [block.position for block in table.blocks.values() if block.name != held.name]
    free = [min((float(np.hypot(*(spot - other)[:2])) for other in others), default=1.0) for spot in spots]
    near = [float(np.hypot(*(spot - held.position)[:2])) for spot in spots]
    return spots[max(range(len(spots)), key=lambda index: (min(free[index], _APART), -near[index]))]


def _sweep(table: PlayTable, hand: Hand, name: str, way: Point, distance: float, speed: float = 0.5) -> Moves:
    """Push a block along a horizontal unit vector with closed fingers."""

    def line() -> tuple[Point, Point]:
        block = table.blocks[name]
        start = block.position - way * (block.reach(way) + _FINGER) + np.array([0, 0, 0.006])
        return start, start + way * (distance + _FINGER)

    hand.gripper = CLOSED
    start, end = line()
    tilt, roll = pointing(*lean(table, max(start, end, key=lambda point: table.away(point)[0])))
    yield from hand.travel(start + np.array([0, 0, 0.1]), tilt=tilt, roll=roll)
    start, end = line()  # the block may have been sliding
    yield from hand.go(start, precise=True, speed=0.8)
    yield from hand.go(end, speed=speed)


def _shove(table: PlayTable, block: Block, side: float) -> float:
    """Return how fast to push: so that the block slides on and nothing touches it then, but not off the table."""
    lower, upper = table.box("base_link")
    room = (upper[0] - block.position[0] if side > 0 else block.position[0] - lower[0]) - _PUSH
    return 1.0 if room > _SLIDE else 0.5


def _uncover(table: PlayTable, hand: Hand, block: Block) -> Moves:
    """Move the slider away from a block behind it."""
    (left, _, _), (right, _, _) = table.box("plank_link")
    lower, upper = table.box("slide_link")
    side = -1.0 if block.position[0] > (left + right) / 2 else 1.0
    way_left = lower[0] - left if side < 0 else right - upper[0]
    if lower[0] - _BESIDE < block.position[0] < upper[0] + _BESIDE and way_left > _AT_END:
        yield from move_slider(table, hand, side)
        yield from hand.go([table.hand[0], FRONT, TRAVEL])


def _is_on_table(block: Block) -> bool:
    return TABLE in block.bodies and ROBOT not in block.bodies and block.position[1] < 0 and block.position[2] > 0.44
