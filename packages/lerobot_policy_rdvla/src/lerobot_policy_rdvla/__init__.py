"""Makes the policy type `rdvla` known to LeRobot, which imports this package by its name."""

try:
    import lerobot  # noqa: F401
except ImportError as error:
    raise ImportError(
        "lerobot_policy_rdvla is a plugin of LeRobot, which is not installed: pip install lerobot"
    ) from error

from lerobot_policy_rdvla.configuration_rdvla import RDVLAConfig
from lerobot_policy_rdvla.modeling_rdvla import RDVLAPolicy
from lerobot_policy_rdvla.processor_rdvla import make_rdvla_pre_post_processors

__all__ = ["RDVLAConfig", "RDVLAPolicy", "make_rdvla_pre_post_processors"]
