"""Where a policy comes from: a checkpoint made ready to act, an expert, a server.

from rdvla.policies import load_policy
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdvla.policies.network import load_policy

__all__ = ["load_policy"]


def __getattr__(name: str) -> Any:
    """Import torch only when a network is asked for."""
    if name == "load_policy":
        from rdvla.policies.network import load_policy

        return load_policy
    raise AttributeError(f"module 'rdvla.policies' has no attribute '{name}'")
