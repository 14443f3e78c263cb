"""Skills for what the table has: drawer, slider, button and switch."""

import numpy as np

from rdvla.experts.calvin.hand import CLOSED, Hand, Moves
from rdvla.experts.calvin.table import PlayTable

_SLANT = np.array([0.0, 0.5, np.sqrt(0.75)])
"""Which way the switch moves up, along the back wall."""


def open_drawer(table: PlayTable, hand: Hand) -> Moves:
    """Reach behind the drawer's handle and pull."""
    lower, upper = table.box("drawer_link")
    x, y, z = (lower[0] + upper[0]) / 2, lower[1] + 0.034, (lower[2] + upper[2]) / 2
    yield from hand.travel([x, y, z + 0.12])
    yield from hand.go([x, y, z], precise=True, speed=0.7)
    yield from hand.close(6)
    yield from hand.go([x, y - 0.2, z], speed=0.5)


def close_drawer(table: PlayTable, hand: Hand) -> Moves:
    """Push the drawer's handle."""
    lower, upper = table.box("drawer_link")
    x, y, z = (lower[0] + upper[0]) / 2, lower[1] - 0.06, (lower[2] + upper[2]) / 2
    hand.gripper = CLOSED
    yield from hand.travel([x, y, z + 0.12])
    yield from hand.go([x, y, z], precise=True)
    yield from hand.go([x, y + 0.27, z], speed=0.5)


def move_slider(table: PlayTable, hand: Hand, side: float) -> Moves:
    """Push the slider's handle to the left (`side` -1) or to the right (+1)."""
    lower, upper = table.box("slide_link")
    x = (lower[0] + upper[0]) / 2 - side * 0.075
    hand.gripper = CLOSED
    yield from hand.travel([x, -0.1, 0.58])
    yield from hand.go([x, 0.005, 0.56], precise=True)
    yield from hand.go([x + side * 0.33, 0.005, 0.56], speed=0.6)


def press_button(table: PlayTable, hand: Hand) -> Moves:
    """Press the button from above, once."""
    lower, upper = table.box("button_link")
    x, y, z = (lower[0] + upper[0]) / 2, (lower[1] + upper[1]) / 2, upper[2]
    hand.gripper = CLOSED
    yield from hand.travel([x, y, z + 0.06])
    yield from hand.go([x, y, z - 0.01], speed=0.5, precise=True)
    yield from hand.go([x, y, z + 0.05])


def flip_switch(table: PlayTable, hand: Hand, side: float) -> Moves:
    """Push the switch up (`side` +1) or down (-1) along the back wall."""
    lower, upper = table.box("switch_link")
    x = (lower[0] + upper[0]) / 2
    hand.gripper = CLOSED
    if side > 0:
        start = np.array([x, lower[1], lower[2] - 0.03])
        yield from hand.travel(start + np.array([0, -0.08, 0]))
        yield from hand.go(start, precise=True)
        yield from hand.go(start + 0.12 * _SLANT, speed=0.5)
    else:
        start = np.array([x, lower[1] + 0.045, upper[2] + 0.035])
        yield from hand.travel(start + np.array([0, -0.06, 0.02]), tilt=0.5)
        yield from hand.go(start, precise=True)
        yield from hand.go(start - 0.14 * _SLANT + np.array([0, 0.015, 0]), speed=0.5)
