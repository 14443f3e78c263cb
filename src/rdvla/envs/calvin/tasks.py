"""The oracle: which of the 34 tasks have been solved between two moments.

Every task is a change, so it needs the moment when its subtask began. Thresholds and their quirks are the published
ones; among them: a block pushed into the drawer may be touched by the robot at the end.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rdvla.envs.calvin.info import ROBOT, TABLE, BlockInfo, Contact, Info

Condition = Callable[[Info, Info], bool]

COLOURS = ("red", "blue", "pink")

_TURN, _TILT, _STRAY = 60, 30, 0.1
_PUSH = 0.1
_SLIDE, _PULL = 0.15, 0.12
_CALM = 1
_ON_TABLE = Contact(TABLE, "base_link")
_IN_SLIDER = Contact(TABLE, "plank_link")
_IN_DRAWER = Contact(TABLE, "drawer_link")


def solved(start: Info, now: Info) -> frozenset[str]:
    """Return the names of the tasks that have been solved since `start`."""
    return frozenset(name for name, condition in TASKS.items() if condition(start, now))


def is_solved(task: str, start: Info, now: Info) -> bool:
    """Return whether one task has been solved since `start`."""
    return TASKS[task](start, now)


def _rotated(block: str, degrees: float, start: Info, now: Info) -> bool:
    """Turned about the vertical by more than `degrees`, without tilting, straying or being held alone."""
    before, after = start.blocks[block], now.blocks[block]
    if np.linalg.norm(after.position - before.position) > _STRAY or not after.touching - {ROBOT}:
        return False
    x, y, z = np.degrees(_euler(_matrix(after) @ _matrix(before).T))
    turned = degrees < z < 180 if degrees > 0 else -180 < z < degrees
    return bool(turned and abs(x) < _TILT and abs(y) < _TILT)


def _pushed(block: str, distance: float, start: Info, now: Info) -> bool:
    """Moved along x by more than `distance`, while staying on what it was on."""
    before, after = start.blocks[block], now.blocks[block]
    under, still_under = ({contact for contact in each.contacts if contact.body != ROBOT} for each in (before, after))
    moved = after.position[0] - before.position[0]
    return bool(under and under <= still_under and (moved > distance if distance > 0 else moved < distance))


def _moved_door(joint: str, distance: float, start: Info, now: Info) -> bool:
    moved = now.doors[joint] - start.doors[joint]
    return moved > distance if distance > 0 else moved < distance


def _lifted(block: str, height: float, surface: Contact, start: Info, now: Info) -> bool:
    """Higher than before by more than `height`, touched by the robot alone; it was on `surface`."""
    before, after = start.blocks[block], now.blocks[block]
    rose = after.position[2] - before.position[2] > height
    return bool(rose and after.touching == {ROBOT} and surface in before.contacts)


def _placed(surface: Contact, start: Info, now: Info) -> bool:
    """The one thing that the robot touched was a block that nothing else touched; let go, it is on `surface`."""
    if len(start.touched) != 1:
        return False
    (held,) = start.touched
    if held in now.touched or held not in start.blocks:
        return False
    return start.blocks[held].touching == {ROBOT} and surface in now.blocks[held].contacts


def _stacked(start: Info, now: Info) -> bool:
    """A block that touched no other now touches others only, and is calm."""
    return any(
        not start.blocks[name].touching & start.blocks.keys() and _on_blocks(block, now) and _calm(block)
        for name, block in now.blocks.items()
    )


def _unstacked(start: Info, now: Info) -> bool:
    """A block that touched others only, and was calm, now touches no other."""
    return any(
        _on_blocks(block, start) and _calm(block) and not now.blocks[name].touching & now.blocks.keys()
        for name, block in start.blocks.items()
    )


def _switched(light: str, lit: bool, start: Info, now: Info) -> bool:
    return start.lights[light] != lit and now.lights[light] == lit


def _pushed_into_drawer(start: Info, now: Info) -> bool:
    """A block that touched nothing but the table touches the drawer."""
    return any(
        start.blocks[name].contacts == {_ON_TABLE} and _IN_DRAWER in block.contacts
        for name, block in now.blocks.items()
    )


def _on_blocks(block: BlockInfo, info: Info) -> bool:
    return bool(block.touching) and block.touching <= info.blocks.keys()


def _calm(block: BlockInfo) -> bool:
    return bool((np.abs([block.linear_velocity, block.angular_velocity]) < _CALM).all())


def _matrix(block: BlockInfo) -> NDArray[np.float64]:
    """Return its rotation `[3, 3]`."""
    x, y, z, w = block.quaternion / np.linalg.norm(block.quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _euler(matrix: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the angles about the fixed axes x, y, z, one after the other, rad."""
    y = np.arcsin(np.clip(-matrix[2, 0], -1, 1))
    return float(np.arctan2(matrix[2, 1], matrix[2, 2])), float(y), float(np.arctan2(matrix[1, 0], matrix[0, 0]))


def _all_tasks() -> dict[str, Condition]:
    tasks: dict[str, Condition] = {}
    for colour in COLOURS:
        block = f"block_{colour}"
        tasks[f"rotate_{colour}_block_right"] = partial(_rotated, block, -_TURN)
        tasks[f"rotate_{colour}_block_left"] = partial(_rotated, block, _TURN)
        tasks[f"push_{colour}_block_right"] = partial(_pushed, block, _PUSH)
        tasks[f"push_{colour}_block_left"] = partial(_pushed, block, -_PUSH)
        tasks[f"lift_{colour}_block_table"] = partial(_lifted, block, 0.05, _ON_TABLE)
        tasks[f"lift_{colour}_block_slider"] = partial(_lifted, block, 0.03, _IN_SLIDER)
        tasks[f"lift_{colour}_block_drawer"] = partial(_lifted, block, 0.05, _IN_DRAWER)
    return tasks | {
        "move_slider_left": partial(_moved_door, "base__slide", _SLIDE),
        "move_slider_right": partial(_moved_door, "base__slide", -_SLIDE),
        "open_drawer": partial(_moved_door, "base__drawer", _PULL),
        "close_drawer": partial(_moved_door, "base__drawer", -_PULL),
        "place_in_slider": partial(_placed, _IN_SLIDER),
        "place_in_drawer": partial(_placed, _IN_DRAWER),
        "stack_block": _stacked,
        "unstack_block": _unstacked,
        "turn_on_lightbulb": partial(_switched, "lightbulb", True),
        "turn_off_lightbulb": partial(_switched, "lightbulb", False),
        "turn_on_led": partial(_switched, "led", True),
        "turn_off_led": partial(_switched, "led", False),
        "push_into_drawer": _pushed_into_drawer,
    }


TASKS: Mapping[str, Condition] = _all_tasks()
"""Task -> whether it has been solved between the moment its subtask began and now."""
