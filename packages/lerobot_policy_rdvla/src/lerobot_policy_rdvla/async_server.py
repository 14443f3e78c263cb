"""LeRobot's asynchronous policy server with rdvla among the policies that it accepts.

    python -m lerobot_policy_rdvla.async_server --host=127.0.0.1 --port=8080

All options are LeRobot's. Its server loads no plugins and knows policies from a list; this adds ours to the list first.
It unpickles what clients send: bind it to an address that only trusted machines reach.
"""

import sys

from rdvla.checkpoints.lerobot import TYPE
from rdvla.errors import ConfigError


def accept() -> None:
    """Let LeRobot's server accept policies of type rdvla, in this process.

    Raises:
        ConfigError: LeRobot's asynchronous part is not installed.
    """
    try:
        from lerobot.async_inference import constants, policy_server  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"LeRobot's asynchronous server needs more ({error}): pip install 'lerobot[async]'"
        ) from error
    import lerobot_policy_rdvla  # noqa: F401  # registers the configuration

    if TYPE not in constants.SUPPORTED_POLICIES:
        constants.SUPPORTED_POLICIES.append(TYPE)


def main() -> None:
    """Serve until interrupted; what is missing ends with one message and exit code 2."""
    try:
        accept()
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    from lerobot.async_inference.policy_server import serve

    serve()


if __name__ == "__main__":
    main()
