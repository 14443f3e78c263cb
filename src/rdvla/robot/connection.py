"""The way to a policy server: what a client needs of a connection, and the websocket that gives it."""

import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from rdvla.errors import MissingExtraError, ServeError
from rdvla.wire.protocol import API_KEY_VARIABLE, BadRequest

try:
    from websockets import CloseCode
    from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI
    from websockets.sync.client import ClientConnection, connect
except ModuleNotFoundError:
    raise MissingExtraError("websockets", "client") from None

LARGEST_REPLY = 64 * 2**20


class ConnectionLost(ServeError):  # noqa: N818 - says what happened
    """The server cannot be reached just now."""


class Connection(Protocol):
    """One open connection to a policy server."""

    def send(self, frame: bytes) -> None:
        """Send one message; ConnectionLost if that is impossible."""
        ...

    def receive(self, timeout_s: float) -> bytes | str:
        """Return the next message; TimeoutError after `timeout_s`, ConnectionLost if there will be none."""
        ...

    def close(self) -> None:
        """Close without waiting."""
        ...


class _WebSocket:
    """`Connection` over a real websocket."""

    def __init__(self, connection: ClientConnection, closing: ExitStack) -> None:
        self._connection = connection
        self._closing = closing

    def send(self, frame: bytes) -> None:
        try:
            self._connection.send(frame)
        except ConnectionClosed as error:
            raise _ended(error) from None

    def receive(self, timeout_s: float) -> bytes | str:
        try:
            return self._connection.recv(timeout=timeout_s)
        except ConnectionClosed as error:
            raise _ended(error) from None

    def close(self) -> None:
        self._connection.close_timeout = 0.1
        self._closing.close()


def _ended(error: ConnectionClosed) -> ServeError:
    """Say why a connection has ended: for a message of ours that is too large for good, else for now."""
    if error.rcvd is not None and error.rcvd.code == CloseCode.MESSAGE_TOO_BIG:
        return BadRequest(
            f"the observation is too large for the server ({error.rcvd.reason or 'message too big'}); send smaller "
            "pictures, or raise max_message_bytes there."
        )
    return ConnectionLost(f"connection lost: {error}")


def _limit(connection: socket.socket, seconds: float) -> None:
    """Make a send fail after `seconds` if the server takes nothing, and a read that waits for the rest of something.

    The library would wait for its pings, and for ever where TLS has sent something of its own and the server nothing.
    """
    whole = int(seconds)
    timeout = struct.pack("ll", whole, int((seconds - whole) * 1e6))
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, timeout)


def websocket_connector(
    url: str, api_key: str | None, tls_ca: Path | None, deadline_s: float
) -> Callable[[float], Connection]:
    """Return a function that opens a websocket to `url` within the given seconds.

    Args:
        url: `ws://host:port` or `wss://host:port`.
        api_key: sent as `Authorization: Api-Key ...`; None sends none.
        tls_ca: PEM file of the authority to trust for `wss`; None takes the machine's.
        deadline_s: a send, or the rest of a message, that takes longer than this fails.

    Raises:
        ServeError: `tls_ca` cannot be read. The function: the server is not one, or refuses for good.
        ConnectionLost: (the function) the server cannot be reached just now.
    """
    context = None
    if url.startswith("wss://"):
        try:
            context = ssl.create_default_context(cafile=tls_ca)
        except (OSError, ssl.SSLError) as error:
            raise ServeError(f"cannot read the certificates in tls_ca '{tls_ca}': {error}") from None
    headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None

    def open_websocket(timeout_s: float) -> Connection:
        timeout_s = max(0.001, timeout_s)

        class Limited(ClientConnection):
            def __init__(self, socket: socket.socket, *arguments: Any, **options: Any) -> None:
                _limit(socket, timeout_s)
                super().__init__(socket, *arguments, **options)

        opening = connect(
            url,
            ssl=context,
            compression=None,
            max_size=LARGEST_REPLY,
            additional_headers=headers,
            open_timeout=timeout_s,
            close_timeout=1.0,
            proxy=None,
            create_connection=Limited,
        )
        with ExitStack() as closing:
            connection = closing.enter_context(opening)
            _limit(connection.socket, deadline_s)
            return _WebSocket(connection, closing.pop_all())

    def explained(timeout_s: float) -> Connection:
        try:
            return open_websocket(timeout_s)
        except InvalidStatus as error:
            raise _refusal(url, error) from None
        except ssl.SSLCertVerificationError as error:
            raise ServeError(f"the certificate of {url} is not trusted ({error.verify_message}); see tls_ca.") from None
        except (OSError, InvalidMessage, EOFError, TimeoutError) as error:
            raise ConnectionLost(
                f"no policy server answers at {url} ({error}); start one with 'rdvla serve'."
            ) from None
        except (InvalidURI, ValueError):  # a port that is none
            raise ServeError(f"'{url}' is not a server's address; use ws://HOST:PORT or wss://HOST:PORT.") from None
        except InvalidHandshake as error:
            raise ServeError(f"{url} does not speak websocket: {error}") from None

    return explained


def _refusal(url: str, error: InvalidStatus) -> ServeError:
    status = error.response.status_code
    body = (error.response.body or b"").decode("utf-8", "replace").strip()
    passes = status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE)
    kind = ConnectionLost if passes else ServeError
    hint = f" Its key belongs into {API_KEY_VARIABLE} here." if status == HTTPStatus.UNAUTHORIZED else ""
    return kind(f"{url} refused the connection with HTTP {status}: {body}{hint}")
