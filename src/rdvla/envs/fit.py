"""Does a policy fit a suite? Asked before a simulator starts."""

from collections.abc import Container, Sequence

from rdvla.embodiment import Embodiment
from rdvla.envs.base import Suite
from rdvla.errors import ConfigError
from rdvla.policy import PolicyMetadata

_LARGEST_DELTA = 1.0 + 1e-4
"""Of a unit; some data are rounded."""


def require_fit(policy: PolicyMetadata, suite: Suite) -> None:
    """Check that a policy can act in the environments of `suite`.

    Raises:
        ConfigError: a camera is missing there, state or action have another size, the gripper is turned round, or the
            actions seem to say where to go where deltas are wanted. The message shows both sides.
    """
    robot = suite.embodiment
    if wrong := differences(policy, robot, robot.cameras):
        raise ConfigError(
            f"the policy '{policy.name}' does not fit suite '{suite.name}': {'; '.join(wrong)}. It takes cameras "
            f"{', '.join(policy.cameras) or 'none'}; state {policy.state_dim}; action {policy.action_dim}. The suite "
            f"offers {robot}. Choose another suite, or a policy trained for this one."
        )


def differences(policy: PolicyMetadata, robot: Embodiment, cameras: Container[str]) -> list[str]:
    """Return what `robot`, seen by `cameras`, has otherwise than the policy was trained on; empty if nothing."""
    wrong = [f"there is no camera '{camera}'" for camera in policy.cameras if camera not in cameras]
    for name, needed, offered in (
        ("state", policy.state_dim, robot.state_dim),
        ("action", policy.action_dim, robot.action_dim),
    ):
        if needed != offered:
            wrong.append(f"the {name} has {offered} numbers there, not {needed}")
    gripper = policy.extra.get("gripper", robot.gripper)
    if not robot.takes_gripper(gripper):
        wrong.append(f"the gripper is {robot.gripper} there, not {gripper}")
    reach = policy.extra.get("action_reach")
    if reach is not None and policy.action_dim == robot.action_dim:
        wrong += _positions(reach, robot)
    return wrong


def _positions(reach: Sequence[float], robot: Embodiment) -> list[str]:
    """Return what shows that actions of such a size are not the robot's deltas; empty if nothing does.

    A policy says nothing of it, its statistics do: deltas lie in -1..1, and where to go does not, as a hand pointing
    down is turned by pi.
    """
    beyond = [
        f"{name} up to {most:.3g}"
        for name, most in zip(robot.action_names, reach, strict=True)
        if name.startswith("delta_") and most > _LARGEST_DELTA
    ]
    told = f"deltas lie in -1..1 there, the policy's actions have {', '.join(beyond)}: they seem to say where to go"
    return [told] if beyond else []
