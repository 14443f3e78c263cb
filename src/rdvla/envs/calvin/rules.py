"""In which situations a task makes sense, and what it changes: the rules that chains are made by.

A situation says in words where things are: `led` and `lightbulb` are 0 or 1, `slider` is left or right, `drawer` open
or closed, a block is on the `table`, in a compartment (`slider_left`, `slider_right`), in the `drawer`, `grasped`,
`stacked_top` or `stacked_bottom`; `grasped` is 1 while the robot holds one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from rdvla.envs.calvin.tasks import COLOURS

Situation = Mapping[str, str | int]

Kind = Literal[
    "turn or push", "slider", "drawer", "lift from table", "lift from slider", "lift from drawer", "place", "light",
    "push into drawer", "stack", "unstack",
]  # fmt: skip

BLOCKS = tuple(f"{colour}_block" for colour in COLOURS)
COMPARTMENTS = ("slider_right", "slider_left")


@dataclass(frozen=True)
class Change:
    """One way to solve a task.

    Attributes:
        needs: what the situation must be: name -> the values it may have.
        gives: what is different afterwards.
    """

    needs: Mapping[str, tuple[str | int, ...]]
    gives: Situation


@dataclass(frozen=True)
class Rule:
    """A task.

    Attributes:
        kind: a chain has one task of every kind at most.
        changes: the ways to solve it.
    """

    kind: Kind
    changes: tuple[Change, ...]


def outcomes(situation: Situation, task: str) -> list[Situation]:
    """Return the situations that solving `task` can lead to; none if it does not make sense in `situation`."""
    return [
        {**situation, **change.gives}
        for change in RULES[task].changes
        if all(situation[name] in values for name, values in change.needs.items())
    ]


def follow(situation: Situation, tasks: Iterable[str]) -> Situation | None:
    """Return where a chain leads, or None if it is not one: a task without sense or with two outcomes, a kind twice."""
    kinds = set()
    for task in tasks:
        after = outcomes(situation, task)
        kind = RULES[task].kind
        if len(after) != 1 or kind in kinds:
            return None
        kinds.add(kind)
        situation = after[0]
    return situation


def _rule(kind: Kind, *changes: tuple[Situation, Situation]) -> Rule:
    """Return a rule whose changes need a free hand, unless they say otherwise, and exactly the values given."""
    return Rule(
        kind,
        tuple(
            Change({name: (value,) for name, value in {"grasped": 0, **needs}.items()}, gives)
            for needs, gives in changes
        ),
    )


def _flip(kind: Kind, name: str, before: str | int, after: str | int) -> Rule:
    return _rule(kind, ({name: before}, {name: after}))


def _lift(kind: Kind, block: str, *places: Situation) -> Rule:
    held: Situation = {block: "grasped", "grasped": 1}
    return _rule(kind, *((place, held) for place in places))


def _put(block: str, needs: Situation, gives: Situation) -> tuple[Situation, Situation]:
    return {block: "grasped", "grasped": 1, **needs}, {"grasped": 0, **gives}


def _push_into_drawer() -> Rule:
    """The other blocks are out of the way."""
    changes = []
    for block in BLOCKS:
        others = {other: COMPARTMENTS for other in BLOCKS if other != block}
        needs: dict[str, tuple[str | int, ...]] = {block: ("table",), **others, "drawer": ("open",), "grasped": (0,)}
        changes.append(Change(needs, {block: "drawer"}))
    return Rule("push into drawer", tuple(changes))


def _all_rules() -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    pairs = [(top, bottom) for top in BLOCKS for bottom in BLOCKS if top != bottom]
    for verb in ("rotate", "push"):
        for block in BLOCKS:
            for side in ("right", "left"):
                rules[f"{verb}_{block}_{side}"] = _flip("turn or push", block, "table", "table")
    rules["move_slider_left"] = _flip("slider", "slider", "right", "left")
    rules["move_slider_right"] = _flip("slider", "slider", "left", "right")
    rules["open_drawer"] = _flip("drawer", "drawer", "closed", "open")
    rules["close_drawer"] = _flip("drawer", "drawer", "open", "closed")
    for block in BLOCKS:
        reachable = [{block: "slider_left", "slider": "right"}, {block: "slider_right", "slider": "left"}]
        rules[f"lift_{block}_table"] = _lift("lift from table", block, {block: "table"})
        rules[f"lift_{block}_slider"] = _lift("lift from slider", block, *reachable)
        rules[f"lift_{block}_drawer"] = _lift("lift from drawer", block, {block: "drawer", "drawer": "open"})
    rules["place_in_slider"] = _rule(
        "place",
        *(_put(block, {"slider": side}, {block: f"slider_{side}"}) for block in BLOCKS for side in ("right", "left")),
    )
    rules["place_in_drawer"] = _rule("place", *(_put(block, {"drawer": "open"}, {block: "drawer"}) for block in BLOCKS))
    rules["stack_block"] = _rule(
        "stack",
        *(_put(top, {bottom: "table"}, {top: "stacked_top", bottom: "stacked_bottom"}) for top, bottom in pairs),
    )
    rules["unstack_block"] = _rule(
        "unstack",
        *(({top: "stacked_top", bottom: "stacked_bottom"}, {top: "table", bottom: "table"}) for top, bottom in pairs),
    )
    rules["turn_on_lightbulb"] = _flip("light", "lightbulb", 0, 1)
    rules["turn_off_lightbulb"] = _flip("light", "lightbulb", 1, 0)
    rules["turn_on_led"] = _flip("light", "led", 0, 1)
    rules["turn_off_led"] = _flip("light", "led", 1, 0)
    rules["push_into_drawer"] = _push_into_drawer()
    return rules


RULES: Mapping[str, Rule] = _all_rules()
"""Task -> rule, in the published order, which decides what random numbers mean."""
