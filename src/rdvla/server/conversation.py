"""One connection: greet the client, then answer its requests one after the other until it leaves or errs."""

import asyncio
import dataclasses
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosedOK

from rdvla import __version__
from rdvla.errors import ObservationError, RDVLAError
from rdvla.horizons import Horizon
from rdvla.policy import PolicyMetadata
from rdvla.server.batching import Answer, Batcher
from rdvla.server.config import ServeConfig
from rdvla.server.gate import TokenBucket
from rdvla.server.live import LiveFeed, LiveRecord
from rdvla.server.metrics import Metrics
from rdvla.stops import StopRule
from rdvla.wire.adapters import Adapted, adapt
from rdvla.wire.codec import CodecError, decode, encode
from rdvla.wire.protocol import (
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


@dataclass(frozen=True)
class Service:
    """What all conversations of one server share.

    Attributes:
        config: limits and time-outs.
        metadata: what the policy needs and returns.
        batcher: where requests are decided.
        metrics: where everything is counted.
        horizon: the rule behind `n_action_steps`, if the policy itself suggests none.
        live: the live page's feed, or None.
        default_stop: for requests that do not say when to stop; None leaves it to the policy.
    """

    config: ServeConfig
    metadata: PolicyMetadata
    batcher: Batcher
    metrics: Metrics
    horizon: Horizon
    live: LiveFeed | None
    default_stop: StopRule | None

    def greeting(self) -> bytes:
        """Return the first message of every connection."""
        return encode(metadata_message(self.metadata, server_version=__version__))

    def read(self, frame: bytes) -> tuple[Adapted, RequestOptions]:
        """Return what a request shows and how it wants to be answered.

        Raises:
            BadRequest: not a message, or not one that this policy can answer.
        """
        try:
            message = decode(frame)
            options = read_options(message, max_depth=self.config.max_depth)
            adapted = adapt(message, self.metadata, default_instruction=self.config.instruction)
        except (CodecError, ObservationError) as error:
            raise BadRequest(str(error)) from None
        if options.ask.stop is None:
            ask = dataclasses.replace(options.ask, stop=self.default_stop)
            options = dataclasses.replace(options, ask=ask)
        return (adapted, options) if self.live is None else self.live.override(adapted, options)

    def reply(
        self, adapted: Adapted, options: RequestOptions, answer: Answer, timing: Mapping[str, float]
    ) -> dict[str, Any]:
        """Return the reply to a request, and show it on the live page."""
        chunk = answer.chunk
        reply = reply_message(
            chunk,
            n_action_steps=chunk.n_action_steps or self.horizon.steps(chunk.num_recurrences, len(chunk.actions)),
            policy_ms=float(chunk.timings.get("total", answer.infer_ms)),
            server_timing=timing,
            budget_ms=options.ask.budget_ms,
            missing_cameras=adapted.missing_cameras,
            steered=options.steered,
        )
        self.metrics.requests.labels(adapted.layout).inc()
        if self.live is not None:
            self.live.publish(LiveRecord(adapted.observation, options, answer, reply))
        return reply


class Conversation:
    """Serves one connection.

    Attributes:
        is_answering: whether a request has come whose answer is not sent yet.
    """

    def __init__(self, service: Service, connection: ServerConnection) -> None:
        """Prepare; `run` talks."""
        self.is_answering = False
        self._service = service
        self._connection = connection
        rate = service.config.requests_per_second
        self._bucket = TokenBucket(rate, max(1.0, rate / 4))
        self._previous_ms: float | None = None

    async def run(self) -> None:
        """Talk until the connection ends.

        Raises:
            ConnectionClosed: the client left, or a refusal ended the connection.
            TimeoutError: the client was too slow.
        """
        await self._send(self._service.greeting())
        left = asyncio.ensure_future(self._connection.wait_closed())
        try:
            while True:
                frame = await self._receive()
                self.is_answering = True
                try:
                    await self._respond(frame, left)
                finally:
                    self.is_answering = False
        finally:
            left.cancel()

    async def _respond(self, frame: bytes, left: "asyncio.Future[None]") -> None:
        """Answer one request, with actions or with a refusal."""
        arrived, config, metrics = time.monotonic(), self._service.config, self._service.metrics
        try:
            if (wait_s := self._bucket.take()) > 0:
                await asyncio.sleep(wait_s)
                raise RateLimited(f"at most {config.requests_per_second:g} requests per second.")
            reply = await self._answer(frame, arrived, left)
        except RequestRefused as refusal:
            metrics.errors.labels(refusal.code).inc()
            await self._send(error_text(refusal))
            if not refusal.keeps_connection:
                await self._connection.close(CLOSE_ERROR, refusal.code)
            return
        await self._send(reply)
        total_s = time.monotonic() - arrived
        metrics.latency.observe(total_s)
        self._previous_ms = total_s * 1000

    async def _answer(self, frame: bytes, arrived: float, left: "asyncio.Future[None]") -> bytes:
        """Return the encoded reply.

        Raises:
            RequestRefused: there is no (timely) answer.
            ConnectionClosed: the client left meanwhile.
        """
        adapted, options = self._service.read(frame)
        deadline = arrived + (options.deadline_ms or self._service.config.deadline_ms) / 1000
        future = self._service.batcher.submit(
            adapted.observation, options, client=self._connection.id, deadline=deadline
        )
        answer = await self._await(future, deadline, left)
        timing = {
            "infer_ms": (time.monotonic() - arrived) * 1000,
            "queue_ms": answer.queue_ms,
            "batch_size": float(answer.batch_size),
        }
        if self._previous_ms is not None:
            timing["prev_total_ms"] = self._previous_ms
        return encode(self._service.reply(adapted, options, answer, timing))

    async def _await(self, job: Future[Answer], deadline: float, left: "asyncio.Future[None]") -> Answer:
        """Wait for the answer until `deadline`.

        Raises:
            RequestRefused: late, or the policy failed.
            ConnectionClosed: the client `left`.
        """
        timeout_s = max(0.0, deadline - time.monotonic())
        future = asyncio.wrap_future(job)
        either: set[asyncio.Future[Any]] = {future, left}
        await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if left.done():
            _drop(job, future)
            self._service.metrics.abandoned.inc()
            raise ConnectionClosedOK(None, None)
        if not future.done() or time.monotonic() > deadline:
            _drop(job, future)
            raise DeadlineMissed("the answer was not ready in time and will not be sent.")
        try:
            return future.result()
        except RequestRefused:
            raise
        except RDVLAError as error:
            raise BadRequest(str(error)) from None

    async def _receive(self) -> bytes:
        """Return the next message; text is returned as bytes, to be refused as not msgpack.

        Raises:
            ConnectionClosed: the client left.
            TimeoutError: it was idle too long, or too slow within a message.
        """
        fragments = self._connection.recv_streaming(decode=False)
        parts: list[bytes] = []
        timeout_s = self._service.config.idle_timeout_s
        while True:
            try:
                async with asyncio.timeout(timeout_s):
                    parts.append(await anext(fragments))
            except StopAsyncIteration:
                return parts[0] if len(parts) == 1 else b"".join(parts)
            except TimeoutError:
                self._connection.transport.abort()
                raise
            timeout_s = self._service.config.read_timeout_s

    async def _send(self, message: bytes | str) -> None:
        try:
            async with asyncio.timeout(self._service.config.send_timeout_s):
                await self._connection.send(message)
        except TimeoutError:
            self._service.metrics.errors.labels("slow_client").inc()
            self._connection.transport.abort()
            raise


def _drop(job: Future[Answer], wrapper: "asyncio.Future[Answer]") -> None:
    """Take a request back at once: cancelled through its wrapper alone, it would still wait for a turn of the loop."""
    job.cancel()
    wrapper.cancel()
