"""Plays the skill for the present task, again and again until the task is solved."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdvla.envs.calvin.tasks import COLOURS
from rdvla.experts.calvin import blocks, furniture
from rdvla.experts.calvin.hand import Hand, Moves
from rdvla.experts.calvin.table import PlayTable

Skill = Callable[[PlayTable, Hand, int], Moves]
"""Called with what there is, the hand and the number of the attempt at the task, from 0."""

_LEFT, _RIGHT = -1.0, 1.0
_UP, _DOWN = 1.0, -1.0


class CalvinExpert:
    """Solves one task after the other; acts on a `CalvinEnv`."""

    def __init__(self) -> None:
        self._precise = False
        self._moves: Moves = iter(())
        self._attempt = 0

    @property
    def precise(self) -> bool:
        """Whether the next action needs accuracy."""
        return self._precise

    def reset(self, env: Any) -> None:
        """Begin with the present task of `env`, a `CalvinEnv`."""
        self._table = PlayTable(env)
        self._task = self._table.task
        self._hand = Hand(self._table, float(env.simulation.robot.gripper_action))
        self._attempt = 0
        self._moves = self._plan()

    def act(self, env: Any) -> NDArray[np.float32]:
        """Return the next action `[7]`: relative pose, gripper +1 open or -1 close.

        A skill that is through without having solved the task begins again; one that sees nothing to do stands still.
        """
        if self._table.task != self._task:
            self.reset(env)
        move = next(self._moves, None)
        if move is None:
            self._attempt += 1
            self._moves = self._plan()
            move = next(self._moves, None)
        if move is None:
            self._precise = False
            return np.array([0, 0, 0, 0, 0, 0, self._hand.gripper], dtype=np.float32)
        self._precise = move.precise
        return move.action

    def _plan(self) -> Moves:
        if self._task not in _WITH_BLOCK_IN_HAND:
            yield from blocks.release(self._table, self._hand)
        yield from SKILLS[self._task](self._table, self._hand, self._attempt)


def _once(skill: Callable[[PlayTable, Hand], Moves]) -> Skill:
    return lambda table, hand, attempt: skill(table, hand)


def _all_skills() -> dict[str, Skill]:
    skills: dict[str, Skill] = {
        "move_slider_left": _once(partial(furniture.move_slider, side=_LEFT)),
        "move_slider_right": _once(partial(furniture.move_slider, side=_RIGHT)),
        "open_drawer": _once(furniture.open_drawer),
        "close_drawer": _once(furniture.close_drawer),
        "place_in_slider": _once(blocks.place_in_slider),
        "place_in_drawer": _once(blocks.place_in_drawer),
        "stack_block": _once(blocks.stack),
        "unstack_block": blocks.unstack,
        "turn_on_lightbulb": _once(partial(furniture.flip_switch, side=_UP)),
        "turn_off_lightbulb": _once(partial(furniture.flip_switch, side=_DOWN)),
        "turn_on_led": _once(furniture.press_button),
        "turn_off_led": _once(furniture.press_button),
        "push_into_drawer": blocks.push_into_drawer,
    }
    for colour in COLOURS:
        name = f"block_{colour}"
        for place in ("table", "slider", "drawer"):
            skills[f"lift_{colour}_block_{place}"] = _of(name, blocks.lift)
        for side, turn in (("left", 1.0), ("right", -1.0)):
            skills[f"rotate_{colour}_block_{side}"] = _of(name, partial(blocks.rotate, side=turn))
            skills[f"push_{colour}_block_{side}"] = _of(name, partial(blocks.push, side=-turn))
    return skills


def _of(name: str, skill: Callable[[PlayTable, Hand, str, int], Moves]) -> Skill:
    return lambda table, hand, attempt: skill(table, hand, name, attempt)


SKILLS: Mapping[str, Skill] = _all_skills()
"""Task -> skill."""

_WITH_BLOCK_IN_HAND = ("place_in_slider", "place_in_drawer", "stack_block")
