"""The policy server: openpi's websocket protocol around any `Policy`.

The event loop only moves bytes: it decodes, checks, queues and replies. The policy runs in the `Batcher`'s thread.
A request carries everything its answer depends on, so clients may come, go and be mixed freely.
"""

import asyncio
import contextlib
import dataclasses
import logging
import ssl
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from rdvla import __version__
from rdvla.errors import ConfigError, MissingExtraError, ObservationError, RDVLAError, ServeError
from rdvla.policy import Policy, PolicyMetadata, StopRule
from rdvla.serve.adapters import Adapted, adapt
from rdvla.serve.batching import Answer, Batcher
from rdvla.serve.codec import CodecError, decode, encode
from rdvla.serve.config import ServeConfig
from rdvla.serve.gate import Gate, TokenBucket
from rdvla.serve.live import LIVE_PATH, LiveFeed, LiveRecord
from rdvla.serve.metrics import Metrics
from rdvla.serve.protocol import (
    CLOSE_ERROR,
    BadRequest,
    DeadlineMissed,
    RateLimited,
    RequestOptions,
    RequestRefused,
    error_text,
    metadata_message,
    read_options,
    reply_message,
)
from rdvla.serve.router import Router
from rdvla.types import Observation

try:
    from websockets.asyncio.server import Server, ServerConnection, serve
    from websockets.exceptions import ConnectionClosed, ConnectionClosedOK
except ModuleNotFoundError:
    raise MissingExtraError("websockets", "serve") from None

_log = logging.getLogger(__name__)


class PolicyServer:
    """Serves one policy until it is stopped."""

    def __init__(
        self,
        policy: Policy,
        config: ServeConfig,
        *,
        api_key: str | None = None,
        live: LiveFeed | None = None,
        default_stop: StopRule | None = None,
    ) -> None:
        """Prepare to serve.

        Args:
            policy: what decides; used from one worker thread only.
            config: addresses and limits.
            api_key: asked of every client; see `rdvla.serve.config.read_api_key`.
            live: the feed of the live page, if `config.web`; None makes one.
            default_stop: for requests that do not say when to stop; None leaves it to the policy.

        Raises:
            ConfigError: a host that other machines can reach, without an API key; the live page with one.
        """
        if api_key is not None and config.web:
            raise ConfigError("the live page takes no API key; unset RDVLA_API_KEY or do without --web.")
        if api_key is None and not config.is_loopback:
            raise ConfigError(f"host '{config.host}' can be reached from other machines; an API key is needed.")
        self.config = config
        self.metrics = Metrics()
        self._default_stop = default_stop
        self._metadata = policy.metadata
        self._greeting = encode(metadata_message(self._metadata, server_version=__version__))
        self._batcher = Batcher(
            policy,
            self.metrics,
            max_batch=config.max_batch,
            max_queue=config.max_queue,
            window_s=config.batch_window_ms / 1000,
        )
        self._horizon = config.suggested_horizon()
        self._live = (live or LiveFeed()) if config.web else None
        self._router = Router(Gate(config, api_key), self.metrics, page=config.web)
        self._server: Server | None = None
        self._answering = 0

    @property
    def port(self) -> int:
        """The bound TCP port.

        Raises:
            ServeError: the server is not listening.
        """
        if self._server is None or not self._server.sockets:
            raise ServeError("the server is not listening; start it first.")
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """Where clients connect, e.g. `ws://127.0.0.1:8000`."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"{'wss' if self.config.tls_cert else 'ws'}://{host}:{self.port}"

    async def start(self) -> None:
        """Listen, then make one warm-up decision; the health check says 503 until it is made.

        Raises:
            ServeError: the address cannot be bound, or the warm-up decision failed.
        """
        config = self.config
        try:
            self._server = await serve(
                self._handle,
                config.host,
                config.port,
                ssl=_tls(config),
                compression=None,
                max_size=config.max_message_bytes,
                max_queue=1,
                open_timeout=config.handshake_timeout_s,
                close_timeout=2.0,
                process_request=self._router.process_request,
                server_header=None,
                create_connection=self._router.connection_class(config.max_connections * 4),
                logger=_quiet_logger(),
            )
        except OSError as error:
            raise ServeError(f"cannot listen on {config.host}:{config.port}: {error.strerror or error}") from None
        if self._live is not None:
            self._live.attach(asyncio.get_running_loop())
        self._batcher.start()
        try:
            await self._warm_up()
        except BaseException:
            await self.stop()
            raise
        self._set_ready(True)

    async def stop(self) -> None:
        """Stop accepting, answer what was accepted within the grace time, close every connection."""
        self._set_ready(False)
        if self._server is not None:
            self._server.close(close_connections=False)
        await asyncio.to_thread(self._batcher.stop, self.config.shutdown_grace_s)
        if self._server is not None:
            await self._answers_sent()
            await asyncio.gather(*(each.close(1001, "server stopping") for each in self._server.connections))
            await self._server.wait_closed()

    async def _answers_sent(self) -> None:
        """Wait until the handlers have sent what the policy decided last, no longer than a slow client may take."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.send_timeout_s):
                while self._answering:
                    await asyncio.sleep(0.002)

    def _set_ready(self, ready: bool) -> None:
        self._router.ready = ready
        self.metrics.ready.set(ready)

    async def _warm_up(self) -> None:
        try:
            observation = blank_observation(self._metadata)
            deadline = time.monotonic() + 3600
            future = self._batcher.submit(observation, RequestOptions(seed=0), client="warm-up", deadline=deadline)
            answer = await asyncio.wrap_future(future)
        except RDVLAError as error:
            raise ServeError(f"the policy failed its warm-up decision: {error}") from error
        _log.info("warm-up decision took %.0f ms", answer.infer_ms)

    async def _handle(self, connection: ServerConnection) -> None:
        path = connection.request.path if connection.request is not None else "/"
        try:
            with self.metrics.connections.track_inprogress(), contextlib.suppress(ConnectionClosed, TimeoutError):
                if self._live is not None and path.partition("?")[0] == LIVE_PATH:
                    await self._live.serve(connection, self._metadata)
                else:
                    await self._converse(connection)
        except Exception:
            _log.exception("a connection's handler failed")
            raise

    async def _converse(self, connection: ServerConnection) -> None:
        """Greet, then answer requests one after the other until the client leaves or errs."""
        await self._send(connection, self._greeting)
        bucket = TokenBucket(self.config.requests_per_second, max(1.0, self.config.requests_per_second / 4))
        left = asyncio.ensure_future(connection.wait_closed())
        previous_ms: float | None = None
        try:
            while True:
                frame = await self._receive(connection)
                self._answering += 1
                try:
                    previous_ms = await self._respond(connection, frame, bucket, previous_ms, left)
                finally:
                    self._answering -= 1
        finally:
            left.cancel()

    async def _respond(
        self,
        connection: ServerConnection,
        frame: bytes,
        bucket: TokenBucket,
        previous_ms: float | None,
        left: "asyncio.Future[None]",
    ) -> float | None:
        """Answer one request; return the milliseconds that took in all, or what the last answer took if refused.

        Raises:
            ConnectionClosed: the client left, or the refusal ends the connection.
            TimeoutError: the client did not take the answer.
        """
        arrived = time.monotonic()
        try:
            if (wait_s := bucket.take()) > 0:
                await asyncio.sleep(wait_s)
                raise RateLimited(f"at most {self.config.requests_per_second:g} requests per second.")
            reply = await self._answer(frame, arrived, previous_ms, connection, left)
        except RequestRefused as refusal:
            self.metrics.errors.labels(refusal.code).inc()
            await self._send(connection, error_text(refusal))
            if not refusal.keeps_connection:
                await connection.close(CLOSE_ERROR, refusal.code)
            return previous_ms
        await self._send(connection, reply)
        total_s = time.monotonic() - arrived
        self.metrics.latency.observe(total_s)
        return total_s * 1000

    async def _receive(self, connection: ServerConnection) -> bytes:
        """Return the next message; text is returned as bytes, to be refused as not msgpack.

        Raises:
            ConnectionClosed: the client left.
            TimeoutError: it was idle too long, or too slow within a message.
        """
        fragments = connection.recv_streaming(decode=False)
        parts: list[bytes] = []
        timeout_s = self.config.idle_timeout_s
        while True:
            try:
                async with asyncio.timeout(timeout_s):
                    parts.append(await anext(fragments))
            except StopAsyncIteration:
                return parts[0] if len(parts) == 1 else b"".join(parts)
            except TimeoutError:
                connection.transport.abort()
                raise
            timeout_s = self.config.read_timeout_s

    async def _send(self, connection: ServerConnection, message: bytes | str) -> None:
        try:
            async with asyncio.timeout(self.config.send_timeout_s):
                await connection.send(message)
        except TimeoutError:
            self.metrics.errors.labels("slow_client").inc()
            connection.transport.abort()
            raise

    async def _answer(
        self,
        frame: bytes,
        arrived: float,
        previous_ms: float | None,
        connection: ServerConnection,
        left: "asyncio.Future[None]",
    ) -> bytes:
        """Return the encoded reply.

        Raises:
            RequestRefused: there is no (timely) answer.
            ConnectionClosed: the client left meanwhile.
        """
        adapted, options = self._read(frame)
        if self._live is not None:
            adapted, options = self._live.override(adapted, options)
        deadline = arrived + (options.deadline_ms or self.config.deadline_ms) / 1000
        future = self._batcher.submit(adapted.observation, options, client=connection.id, deadline=deadline)
        answer = await self._await(asyncio.wrap_future(future), deadline, left)
        timing = {
            "infer_ms": (time.monotonic() - arrived) * 1000,
            "queue_ms": answer.queue_ms,
            "batch_size": float(answer.batch_size),
        }
        if previous_ms is not None:
            timing["prev_total_ms"] = previous_ms
        reply = self._reply(adapted, options, answer, timing)
        self.metrics.requests.labels(adapted.layout).inc()
        if self._live is not None:
            self._live.publish(LiveRecord(adapted.observation, options, answer, reply))
        return encode(reply)

    def _read(self, frame: bytes) -> tuple[Adapted, RequestOptions]:
        try:
            message = decode(frame)
            options = read_options(message, max_depth=self.config.max_depth)
            if options.stop is None:
                options = dataclasses.replace(options, stop=self._default_stop)
            return adapt(message, self._metadata, default_instruction=self.config.instruction), options
        except (CodecError, ObservationError) as error:
            raise BadRequest(str(error)) from None

    def _reply(
        self, adapted: Adapted, options: RequestOptions, answer: Answer, timing: Mapping[str, float]
    ) -> dict[str, Any]:
        chunk = answer.chunk
        steps = chunk.n_action_steps or self._horizon.steps(chunk.num_recurrences, len(chunk.actions))
        return reply_message(
            chunk,
            n_action_steps=steps,
            policy_ms=float(chunk.timings.get("total", answer.infer_ms)),
            server_timing=timing,
            budget_ms=options.budget_ms,
            missing_cameras=adapted.missing_cameras,
        )

    async def _await(self, future: "asyncio.Future[Answer]", deadline: float, left: "asyncio.Future[None]") -> Answer:
        """Wait for the answer until `deadline`.

        Raises:
            RequestRefused: late, or the policy failed.
            ConnectionClosed: the client `left`.
        """
        timeout_s = max(0.0, deadline - time.monotonic())
        either: set[asyncio.Future[Any]] = {future, left}
        await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if left.done():
            future.cancel()
            self.metrics.abandoned.inc()
            raise ConnectionClosedOK(None, None)
        if not future.done() or time.monotonic() > deadline:
            future.cancel()
            raise DeadlineMissed("the answer was not ready in time and will not be sent.")
        try:
            return future.result()
        except RequestRefused:
            raise
        except RDVLAError as error:
            raise BadRequest(str(error)) from None


def blank_observation(metadata: PolicyMetadata) -> Observation:
    """Return an observation of the right shapes with nothing in it: black images, zero state."""
    side = metadata.extra.get("image_size", 256)
    height, width = (side, side) if isinstance(side, int) else tuple(side)[:2]
    image = np.zeros((height, width, 3), np.uint8)
    return Observation(
        images={camera: image.copy() for camera in metadata.cameras},
        state=np.zeros(metadata.state_dim, np.float32),
        instruction="warm up",
    )


def _tls(config: ServeConfig) -> ssl.SSLContext | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use tls_cert '{config.tls_cert}' with tls_key '{config.tls_key}': {error}") from None
    return context


def _quiet_logger() -> logging.Logger:
    """Return the websockets library's logger for us: failed handshakes of strangers are not worth a traceback."""
    logger = logging.getLogger("rdvla.serve.websockets")
    logger.setLevel(logging.CRITICAL)
    return logger
