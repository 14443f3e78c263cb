"""The policy server, its metrics and its live page."""

from rdvla.errors import MissingExtraError

try:
    import prometheus_client  # noqa: F401
    import websockets  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingExtraError(str(error.name), "serve") from None
