"""A policy somewhere else: `RemotePolicy` asks a policy server and looks like any other `Policy`.

Needs numpy, msgpack and websockets only.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from rdvla.errors import ObservationError, ServeError
from rdvla.policy import ALARM, PLAIN, Ask, Policy, PolicyMetadata
from rdvla.robot.clock import Clock, SystemClock
from rdvla.robot.connection import Connection, ConnectionLost, websocket_connector
from rdvla.types import ActionChunk, Observation
from rdvla.wire.adapters import to_message
from rdvla.wire.codec import CodecError, Limits, decode, encode
from rdvla.wire.protocol import (
    API_KEY_VARIABLE,
    MAX_MS,
    STEERED,
    Busy,
    DeadlineMissed,
    RateLimited,
    RequestOptions,
    ShuttingDown,
    chunk_from_reply,
    metadata_from_message,
    refusal_from_text,
    write_options,
)

FIRST_TRY_S = 1.0
FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 1.0
REPLY_LIMITS = Limits(max_items=65_536, max_text=1_000_000)
_log = logging.getLogger(__name__)
T = TypeVar("T")


class RemotePolicy(Policy):
    """A `Policy` whose decisions are made by a server.

    A request carries everything its answer depends on, so after a lost connection it is simply sent again on a new
    one, as long as its deadline allows. An answer that comes too late is never used: the connection on which it
    might still arrive is dropped.

    Attributes:
        reconnects: connections opened after the first.
        fallbacks: decisions taken by the local fallback.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        deadline_s: float = 30.0,
        connect_timeout_s: float = 5.0,
        fallback: Callable[[Observation], ActionChunk] | None = None,
        tls_ca: Path | None = None,
        steering: bool = True,
        connect: Callable[[float], Connection] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Connect to the server at `url` and learn what its policy needs.

        Args:
            url: `ws://host:port` or `wss://host:port`.
            api_key: sent as `Authorization: Api-Key ...`; None takes the environment variable RDVLA_API_KEY, if set.
            deadline_s: every call ends within this time, including reconnecting.
            connect_timeout_s: a server that does not answer within this time is taken for absent, now; a server that
                was there before is waited for as long as `deadline_s` allows.
            fallback: decides locally when the server does not in time; None raises instead.
            tls_ca: PEM file of the authority to trust for `wss`, for self-signed certificates.
            steering: whether a person at the server's live page may change what is asked; without, such an answer is
                a `ServeError`.
            connect: opens a connection within the given seconds; None opens websockets to `url`.
            clock: measures and waits; None takes the machine's.

        Raises:
            ServeError: nothing answers at `url` in time, or not with this protocol, or the key is refused.
        """
        for name, value in (("deadline_s", deadline_s), ("connect_timeout_s", connect_timeout_s)):
            if not 0 < value <= MAX_MS / 1000:
                raise ServeError(f"{name} must be above 0 and at most {MAX_MS / 1000:g} s, found {value}.")
        key = (api_key or os.environ.get(API_KEY_VARIABLE, "")).strip() or None
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ServeError(f"the API key (api_key, or {API_KEY_VARIABLE}) is not printable ASCII.")
        self.url = url
        self.reconnects = 0
        self.fallbacks = 0
        self._deadline_s = deadline_s
        self._fallback = fallback
        self._steering = steering
        self._clock = clock or SystemClock()
        self._connect = connect or websocket_connector(url, key, tls_ca, deadline_s)
        self._connection: Connection | None = None
        self._metadata: PolicyMetadata | None = None
        self._first_connection(connect_timeout_s)

    @property
    def metadata(self) -> PolicyMetadata:
        """What the server's policy needs and returns."""
        if self._metadata is None:
            raise ServeError(f"not connected to {self.url}.")
        return self._metadata

    def infer(self, observation: Observation, ask: Ask = PLAIN) -> ActionChunk:
        """Ask the server for one decision; see `Policy.infer`.

        Raises:
            ObservationError: a camera that the policy needs is missing.
            BadRequest: the server refuses this request for good.
            ServeError: no answer within the deadline, and there is no fallback.
        """
        cameras = self.metadata.cameras
        missing = [camera for camera in cameras if camera not in observation.images]
        if missing:
            there = ", ".join(observation.images) or "none"
            raise ObservationError(
                f"no picture of {', '.join(map(repr, missing))}, only of {there}; the policy at {self.url} needs "
                f"{', '.join(cameras)}."
            )
        if not self.metadata.extra.get(ALARM):  # nobody there reads it
            ask = replace(ask, step=None)
        message = to_message(observation)
        message["images"] = {camera: message["images"][camera] for camera in cameras}

        def request(connection: Connection, remaining_s: float) -> ActionChunk:
            connection.send(encode({**message, **write_options(RequestOptions(ask, remaining_s * 1000))}))
            reply = _read_reply(connection.receive(remaining_s))
            if reply.get(STEERED) and not self._steering:
                raise ServeError(
                    f"the live page of {self.url} overrules what is asked of it; set it to what requests ask for, "
                    "without an instruction of its own."
                )
            return chunk_from_reply(reply, self.metadata)

        try:
            return self._retrying(self._deadline_s, request)
        except (ConnectionLost, DeadlineMissed, Busy, RateLimited, ShuttingDown) as error:
            if self._fallback is None:
                raise
            self.fallbacks += 1
            _log.warning("falling back to the local action: %s", error)
            return self._fallback(observation)

    def reset(self) -> None:
        """Nothing to forget: the server keeps no state between requests."""

    def close(self) -> None:
        """Close the connection; the next call opens one again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _first_connection(self, timeout_s: float) -> None:
        """Connect within `timeout_s`; whoever watches is told soon what is being waited for."""
        try:
            self._retrying(min(FIRST_TRY_S, timeout_s), lambda connection, remaining_s: None)
        except (ConnectionLost, DeadlineMissed) as error:
            if timeout_s <= FIRST_TRY_S:
                raise
            _log.warning("%s Trying for another %g s.", error, timeout_s - FIRST_TRY_S)
            self._retrying(timeout_s - FIRST_TRY_S, lambda connection, remaining_s: None)

    def _retrying(self, patience_s: float, ask: Callable[[Connection, float], T]) -> T:
        """Run `ask(connection, remaining_s)`, again after a passing failure, for `patience_s`."""
        deadline = self._clock.now() + patience_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                connection = self._connected(deadline)
                remaining_s = deadline - self._clock.now()
                if remaining_s <= 0:
                    raise DeadlineMissed(f"{self.url} did not answer within {patience_s:g} s.")
                return ask(connection, remaining_s)
            except TimeoutError:
                self.close()
                raise DeadlineMissed(f"{self.url} did not answer within {patience_s:g} s.") from None
            except (ConnectionLost, ShuttingDown) as error:
                self.close()
                failure: ServeError = error
            except (Busy, RateLimited) as error:
                failure = error
            except BaseException:  # Ctrl-C too: an answer that is still under way is nobody's
                self.close()
                raise
            if self._clock.now() + pause_s >= deadline:
                raise failure
            self._clock.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _connected(self, deadline: float) -> Connection:
        if self._connection is not None:
            return self._connection
        connection = self._connect(deadline - self._clock.now())
        try:
            greeting = connection.receive(max(0.0, deadline - self._clock.now()))
            metadata = metadata_from_message(_read_reply(greeting))
            if self._metadata is not None:
                _require_same(self._metadata, metadata, self.url)
                self.reconnects += 1
                _log.warning("reconnected to %s", self.url)
        except BaseException:
            connection.close()
            raise
        self._metadata, self._connection = metadata, connection
        return connection


def _read_reply(reply: bytes | str) -> dict[str, Any]:
    if isinstance(reply, str):
        raise refusal_from_text(reply)
    try:
        return decode(reply, REPLY_LIMITS)
    except CodecError as error:
        raise ServeError(f"the server's answer is not in its protocol: {error}") from None


def _require_same(known: PolicyMetadata, found: PolicyMetadata, url: str) -> None:
    for field in ("cameras", "state_dim", "action_dim", "chunk_size", "fingerprint"):
        before, now = getattr(known, field), getattr(found, field)
        if before != now:
            raise ServeError(
                f"the server at {url} came back with another policy: {field} was {before}, is {now}. "
                "Connect anew if that is what you want."
            )
