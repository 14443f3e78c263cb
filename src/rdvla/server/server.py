"""The policy server: openpi's websocket protocol around any `Policy`.

The event loop only moves bytes: it decodes, checks, queues and replies. The policy runs in the `Batcher`'s thread.
A request carries everything its answer depends on, so clients may come, go and be mixed freely.
"""

import asyncio
import contextlib
import logging
import ssl
import time
from dataclasses import replace

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from rdvla import __version__
from rdvla.errors import ConfigError, RDVLAError, ServeError
from rdvla.policy import Ask, Policy, PolicyMetadata
from rdvla.server.batching import Batcher
from rdvla.server.config import ServeConfig
from rdvla.server.conversation import Conversation, Service
from rdvla.server.gate import Gate
from rdvla.server.live import LIVE_PATH, LiveFeed
from rdvla.server.metrics import Metrics
from rdvla.server.router import Router
from rdvla.stops import StopRule
from rdvla.types import Observation
from rdvla.wire.protocol import RequestOptions

WARM_UP_S = 3600.0
WARM_UP_SIDE = 256
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
        checkpoint: str = "",
    ) -> None:
        """Prepare to serve.

        Args:
            policy: what decides; used from one worker thread only.
            config: addresses and limits.
            api_key: asked of every client; see `rdvla.server.config.read_api_key`.
            live: the feed of the live page, if `config.web`; None makes one.
            default_stop: for requests that do not say when to stop; None leaves it to the policy.
            checkpoint: digest of what the policy was loaded from; part of the fingerprint that clients see. Empty takes
                the policy's name.

        Raises:
            ConfigError: a host that other machines can reach, without an API key; the live page with one.
        """
        if api_key is not None and config.web:
            raise ConfigError("the live page takes no API key; unset RDVLA_API_KEY or do without --web.")
        if api_key is None and not config.is_loopback:
            raise ConfigError(f"host '{config.host}' can be reached from other machines; an API key is needed.")
        self.config = config
        self.metrics = Metrics()
        batcher = Batcher(
            policy,
            self.metrics,
            max_batch=config.max_batch,
            max_queue=config.max_queue,
            window_s=config.batch_window_ms / 1000,
        )
        self._service = Service(
            config=config,
            metadata=with_fingerprint(policy.metadata, checkpoint, default_stop),
            batcher=batcher,
            metrics=self.metrics,
            horizon=config.suggested_horizon(),
            live=(live or LiveFeed()) if config.web else None,
            default_stop=default_stop,
        )
        self._router = Router(Gate(config, api_key), self.metrics, page=config.web)
        self._server: Server | None = None
        self._conversations: set[Conversation] = set()

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
        if self._service.live is not None:
            self._service.live.attach(asyncio.get_running_loop(), max_depth=config.max_depth)
        self._service.batcher.start()
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
        await asyncio.to_thread(self._service.batcher.stop, self.config.shutdown_grace_s)
        if self._server is not None:
            await self._answers_sent()
            await asyncio.gather(*(each.close(1001, "server stopping") for each in self._server.connections))
            await self._server.wait_closed()

    async def _answers_sent(self) -> None:
        """Wait until the handlers have sent what the policy decided last, no longer than a slow client may take."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.send_timeout_s):
                while any(each.is_answering for each in self._conversations):
                    await asyncio.sleep(0.002)

    def _set_ready(self, ready: bool) -> None:
        self._router.ready = ready
        self.metrics.ready.set(ready)

    async def _warm_up(self) -> None:
        observation = blank_observation(self._service.metadata)
        options, deadline = RequestOptions(Ask(seed=0)), time.monotonic() + WARM_UP_S
        try:
            future = self._service.batcher.submit(observation, options, client="warm-up", deadline=deadline)
            answer = await asyncio.wrap_future(future)
        except RDVLAError as error:
            raise ServeError(f"the policy failed its warm-up decision: {error}") from error
        _log.info("warm-up decision took %.0f ms", answer.infer_ms)

    async def _handle(self, connection: ServerConnection) -> None:
        path = connection.request.path if connection.request is not None else "/"
        service, metrics = self._service, self._service.metrics
        try:
            with metrics.connections.track_inprogress(), contextlib.suppress(ConnectionClosed, TimeoutError):
                if service.live is not None and path.partition("?")[0] == LIVE_PATH:
                    await service.live.serve(connection, service.metadata)
                else:
                    await self._converse(connection)
        except Exception:
            _log.exception("a connection's handler failed")
            raise

    async def _converse(self, connection: ServerConnection) -> None:
        conversation = Conversation(self._service, connection)
        self._conversations.add(conversation)
        try:
            await conversation.run()
        finally:
            self._conversations.discard(conversation)


def with_fingerprint(metadata: PolicyMetadata, checkpoint: str, default_stop: StopRule | None) -> PolicyMetadata:
    """Return `metadata` that also say what is served: the checkpoint, the default rule, the version of the code."""
    extra = dict(metadata.extra) if default_stop is None else {**metadata.extra, "default_stop": str(default_stop)}
    rule = extra.get("default_stop", "own rule")
    extra["fingerprint"] = f"{checkpoint or metadata.name}, {rule}, rdvla {__version__}"
    return replace(metadata, extra=extra)


def blank_observation(metadata: PolicyMetadata) -> Observation:
    """Return an observation of the right shapes with nothing in it: black images, zero state."""
    image = np.zeros((WARM_UP_SIDE, WARM_UP_SIDE, 3), np.uint8)
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
    logger = logging.getLogger("rdvla.server.websockets")
    logger.setLevel(logging.CRITICAL)
    return logger
