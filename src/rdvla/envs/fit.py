"""Does a policy fit a suite? Asked before a simulator starts."""

from collections.abc import Container

from rdvla.embodiment import Embodiment
from rdvla.envs.base import Suite
from rdvla.errors import ConfigError
from rdvla.policy import PolicyMetadata


def require_fit(policy: PolicyMetadata, suite: Suite) -> None:
    """Check that a policy can act in the environments of `suite`.

    Raises:
        ConfigError: a camera is missing there, state or action have another size, or the gripper is turned round. The
            message shows both sides.
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
    return wrong
