"""Which gripper convention a dataset's actions can have: by their values, and by the robot that it names."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rdvla.embodiment import CALVIN, LIBERO
from rdvla.types import GripperConvention

MEANING: Mapping[str, str] = {
    "open_is_negative": "-1 opens, +1 closes (LIBERO)",
    "open_is_positive": "+1 opens, -1 closes (CALVIN)",
    "none": "a number like the others, or no gripper",
}


def describe_gripper(values_N: NDArray[np.floating]) -> str:
    """Return what the last action entry's values are, in words, e.g. `-1 (40 %), 1 (60 %)` or `0 to 100`."""
    distinct, counts = np.unique(values_N, return_counts=True)
    if len(distinct) <= 4:
        return ", ".join(
            f"{value:g} ({share:.0%})" for value, share in zip(distinct, counts / len(values_N), strict=True)
        )
    return f"{distinct[0]:.4g} to {distinct[-1]:.4g}, {len(distinct)} different"


def fitting_conventions(values_N: NDArray[np.floating]) -> tuple[GripperConvention, ...]:
    """Return the conventions that the last action entry's values do not contradict; `none` always fits.

    A gripper command lies in -1..1 and goes below 0, unless it is 1 all the time. Values in 0..1 with a 0 among them
    are another command, and so are values beyond 1.
    """
    low, high = float(values_N.min()), float(values_N.max())
    commanded = low >= -1.0 and high <= 1.0 and (low < 0.0 or low == high == 1.0)
    return ("open_is_negative", "open_is_positive", "none") if commanded else ("none",)


def contradiction(values_N: NDArray[np.floating], gripper: GripperConvention) -> str | None:
    """Return why the values of the last action entry cannot be of this convention, with the fix; None if they can."""
    fits = fitting_conventions(values_N)
    if gripper in fits:
        return None
    return (
        f"the last action entry is {describe_gripper(values_N)}, which is no gripper command of -1 and +1, so "
        f"'{gripper}' ({MEANING[gripper]}) would train nonsense. What fits: "
        + "; ".join(f"'{name}' ({MEANING[name]})" for name in fits)
        + ". Set data.gripper."
    )


def robots_contradiction(state_names: object, gripper: GripperConvention) -> str | None:
    """Return why a robot whose state is called so cannot have this convention, with the fix; None if it can.

    Values of -1 and +1 say nothing about which of them opens; the state's names tell LIBERO's robot from CALVIN's.
    """
    for name, robot in (("LIBERO", LIBERO), ("CALVIN", CALVIN)):
        if (
            isinstance(state_names, list | tuple)
            and tuple(state_names) == robot.state_names
            and gripper != robot.gripper
        ):
            return (
                f"its state is that of {name}'s robot, where the gripper is '{robot.gripper}' "
                f"({MEANING[robot.gripper]}), not '{gripper}'. Set data.gripper."
            )
    return None
