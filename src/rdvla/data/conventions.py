"""What a dataset's actions can mean: which gripper convention (by their values and the robot named), whose ranges."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rdvla.data.findings import Finding, Severity
from rdvla.embodiment import CALVIN, LIBERO
from rdvla.types import GripperConvention

MEANING: Mapping[str, str] = {
    "open_is_negative": "-1 opens, +1 closes (LIBERO)",
    "open_is_positive": "+1 opens, -1 closes (CALVIN)",
    "none": "a number like the others, or no gripper",
}


HALF = 0.5
"""Commands of -1 and +1 that never come this far are none."""
_ARM_ENTRIES = 7
"""Of LIBERO's and CALVIN's actions; their environments take -1..1 in each."""


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

    A gripper command lies in -1..1, comes at least half way to one of them, and goes below 0, unless it is 1 all the
    time. Values in 0..1 with a 0 among them are another command, and so are values beyond 1; a few hundredths are a
    position in metres.
    """
    low, high = float(values_N.min()), float(values_N.max())
    commanded = low >= -1.0 and high <= 1.0 and max(-low, high) >= HALF and (low < 0.0 or low == high == 1.0)
    return ("open_is_negative", "open_is_positive", "none") if commanded else ("none",)


def contradiction(
    values_N: NDArray[np.floating], gripper: GripperConvention, setting: str = "data.gripper"
) -> str | None:
    """Return why the values of the last action entry cannot be of this convention, with the fix; None if they can.

    `setting` is what people call the convention where they set it.
    """
    fits = fitting_conventions(values_N)
    if gripper in fits:
        return None
    return (
        f"the last action entry is {describe_gripper(values_N)}, which is no gripper command of -1 and +1, so "
        f"'{gripper}' ({MEANING[gripper]}) would train nonsense. What fits: "
        + "; ".join(f"'{name}' ({MEANING[name]})" for name in fits)
        + f". Set {setting}."
    )


def robots_contradiction(state_names: object, gripper: GripperConvention, setting: str = "data.gripper") -> str | None:
    """Return why a robot whose state is called so cannot have this convention, with the fix; None if it can.

    Values of -1 and +1 say nothing about which of them opens; the state's names tell LIBERO's robot from CALVIN's.
    """
    for name, robot in (("LIBERO", LIBERO), ("CALVIN", CALVIN)):
        if (
            isinstance(state_names, list | tuple)
            and tuple(state_names) == robot.state_names
            and not robot.takes_gripper(gripper)
        ):
            return (
                f"its state is that of {name}'s robot, where the gripper is '{robot.gripper}' "
                f"({MEANING[robot.gripper]}), not '{gripper}'. Set {setting}."
            )
    return None


def about_actions(
    actions_ND: NDArray[np.floating], gripper: GripperConvention | None = None, state_names: object = None
) -> list[Finding]:
    """Say what the last entry of the actions is and is taken for, and what is unusual about the others.

    Args:
        actions_ND: all actions of a dataset, finite.
        gripper: how they will be read; None: nobody has said yet.
        state_names: what the dataset calls the state's entries, which may tell the robot.
    """
    last = actions_ND[:, -1]
    fits = fitting_conventions(last)
    if gripper is None:
        possible = [name for name in fits if robots_contradiction(state_names, name) is None]
        meanings = "; ".join(f"'{name}' ({MEANING[name]})" for name in possible)
        taken = f"data.gripper can be {meanings}."
    else:
        taken = f"it is taken as '{gripper}' ({MEANING[gripper]})."
    doubt = "" if gripper == "none" or len(fits) == 1 else _doubt(last)
    severity: Severity = "warning" if doubt and gripper is not None else "note"
    findings = [Finding(severity, f"the last entry is {describe_gripper(last)}; {taken}{doubt}", feature="action")]
    switches = [entry for entry in range(actions_ND.shape[1] - 1) if _is_switch(actions_ND[:, entry])]
    if switches and gripper != "none":
        what = f"entries {switches} are -1 and +1 only, like a gripper, but a convention is about the last entry alone."
        fix = "For several grippers, or one that is not last, take data.gripper=none: all are read as numbers."
        findings.append(Finding("warning" if gripper else "note", what, fix, "action"))
    reach = np.abs(actions_ND).max(axis=0)
    beyond = np.flatnonzero(reach > 1.0).tolist()
    if beyond and len(fits) > 1 and actions_ND.shape[1] == _ARM_ENTRIES:
        what = f"entries {beyond} go beyond -1..1 (up to {reach.max():.4g})."
        fix = "LIBERO's and CALVIN's environments execute no more than 1; for another robot this may be meant."
        findings.append(Finding("warning", what, fix, "action"))
    return findings


def _doubt(last_N: NDArray[np.floating]) -> str:
    """Return what makes it doubtful that values are gripper commands; empty if nothing does."""
    if last_N.min() == last_N.max():
        return " It never changes, so a policy will always send the same."
    return "" if _is_switch(last_N) else " It has values between: if it is a position, take data.gripper=none."


def _is_switch(values_N: NDArray[np.floating]) -> bool:
    return bool((np.abs(values_N) == 1.0).all() and values_N.min() < values_N.max())
