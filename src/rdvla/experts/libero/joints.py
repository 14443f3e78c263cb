"""One hinge or slide of a fixture, as it is now."""

from typing import Any

import numpy as np

from rdvla.experts.libero.boxes import Array

_HINGE = 3  # MuJoCo's mjJNT_HINGE; the other kind that fixtures have is the slide


class Joint:
    """A view of a joint in the running simulation.

    Attributes:
        body: the simulation's number of the body that it moves.
        goal: the value at which the task's predicate holds, in metres (slide) or radians (hinge).
        end: where the joint stops beyond that.
        hinge: whether it turns; else it slides.
    """

    def __init__(self, model: Any, data: Any, index: int, goal: float) -> None:
        """Look at joint `index` of a MuJoCo `model` and its `data`."""
        self._data = data
        self._index = index
        self._address = int(model.jnt_qposadr[index])
        self.body = int(model.jnt_bodyid[index])
        self.hinge = int(model.jnt_type[index]) == _HINGE
        self.goal = goal
        low, high = model.jnt_range[index]
        self.end = float(high if goal > (low + high) / 2 else low)

    @property
    def value(self) -> float:
        """Where it is, in the unit of `goal`."""
        return float(self._data.qpos[self._address])

    @property
    def axis(self) -> Array:
        """The direction `[3]` of motion (slide) or the axis of rotation (hinge), world frame."""
        return np.array(self._data.xaxis[self._index])

    @property
    def anchor(self) -> Array:
        """A point `[3]` on the axis of rotation, world frame."""
        return np.array(self._data.xanchor[self._index])

    @property
    def direction(self) -> Array:
        """The same with the sign that leads to the goal."""
        return np.asarray(self.axis * np.sign(self.goal - self.value))

    def moved(self, position: Array, rotation: Array, amount: float) -> tuple[Array, Array]:
        """Return where a pose (`[3]`, `[3, 3]`) that is fixed to the body goes when the joint moves by `amount`."""
        if not self.hinge:
            return position + amount * self.axis, rotation
        anchor, x = self.anchor, self.axis
        cross = np.array([[0, -x[2], x[1]], [x[2], 0, -x[0]], [-x[1], x[0], 0]])
        turn = np.eye(3) + np.sin(amount) * cross + (1 - np.cos(amount)) * cross @ cross
        return anchor + turn @ (position - anchor), turn @ rotation
