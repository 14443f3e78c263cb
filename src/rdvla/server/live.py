"""The live page's feed: what the policy sees and decides, to browsers; what a person wishes, back.

A browser gets every decision's numbers and the newest images; one that is slow skips images, never numbers (up to
the last `HISTORY` decisions). Its wishes apply to every request that the server answers from then on.
"""

import asyncio
import base64
import contextlib
import dataclasses
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from pydantic import Field, field_validator
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from rdvla.config import Config
from rdvla.errors import ConfigError
from rdvla.policy import PolicyMetadata
from rdvla.server.batching import Answer
from rdvla.stops import StopRule, check_name
from rdvla.types import Observation
from rdvla.wire.adapters import MAX_INSTRUCTION, Adapted
from rdvla.wire.protocol import RequestOptions

LIVE_PATH = "/live"
HISTORY = 240
MAX_VIEWERS = 8
FRAME_S = 0.04
SHOWN_SIDE = 512
MAX_DEPTH = 64


class LiveControls(Config):
    """What the person at the live page wishes.

    Attributes:
        mode: `client` leaves requests as they are; `depth` fixes the iterations; `adaptive` stops by `rule`;
            `budget` stops after `budget_ms`.
        depth: iterations of the mode `depth`, and the most that the mode `adaptive` takes.
        rule: stopping rule of the mode `adaptive`, at its default threshold.
        budget_ms: time of the mode `budget`, milliseconds.
        instruction: replaces the sentence of every request; empty leaves it.
        paused: a local simulator waits (`rdvla play`).
        episode: raised by one to start a new episode (`rdvla play`).
    """

    mode: Literal["client", "depth", "adaptive", "budget"] = "client"
    depth: int = Field(12, ge=1, le=MAX_DEPTH)
    rule: str = "action_l2"
    budget_ms: float = Field(100.0, gt=0, le=60_000)
    instruction: str = Field("", max_length=MAX_INSTRUCTION)
    paused: bool = False
    episode: int = Field(0, ge=0)

    @field_validator("rule")
    @classmethod
    def _check_rule(cls, name: str) -> str:
        check_name(name)
        return name


@dataclass(frozen=True)
class LiveRecord:
    """One answered request: what was seen, how it was asked, what was decided."""

    observation: Observation
    options: RequestOptions
    answer: Answer
    reply: Mapping[str, Any]


class LiveFeed:
    """Connects the server (and a local simulator, if any) with the browsers that watch.

    `publish` and `show` may be called from any thread once a loop is attached; everything else happens in it.
    """

    def __init__(self, *, simulator: bool = False) -> None:
        """Serve nobody yet. With `simulator`, the page offers to pause and to start over."""
        self.controls = LiveControls()
        self._simulator = simulator
        self._scene: dict[str, Any] = {}
        self._viewers: set[_Viewer] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._max_depth = MAX_DEPTH
        self._count = 0
        self._history: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        self._images: Mapping[str, NDArray[np.uint8]] = {}

    @property
    def has_viewers(self) -> bool:
        """Whether anybody is watching."""
        return bool(self._viewers)

    def attach(self, loop: asyncio.AbstractEventLoop, *, max_depth: int) -> None:
        """Tell the feed which event loop its viewers live in, and how many iterations its server allows."""
        self._loop = loop
        self._max_depth = min(MAX_DEPTH, max_depth)
        self.controls = self.controls.model_copy(update={"depth": min(self.controls.depth, self._max_depth)})

    def override(self, adapted: Adapted, options: RequestOptions) -> tuple[Adapted, RequestOptions]:
        """Return the request as the person at the page wants it."""
        controls, ask, asked = self.controls, options.ask, (adapted.observation.instruction, options.ask)
        if controls.instruction.strip():
            observation = dataclasses.replace(adapted.observation, instruction=controls.instruction.strip())
            adapted = dataclasses.replace(adapted, observation=observation)
        if controls.mode == "depth":
            ask = dataclasses.replace(ask, stop=StopRule.fixed(controls.depth), budget_ms=None)
        elif controls.mode == "adaptive":
            stop = StopRule(name=controls.rule, max_depth=controls.depth)
            ask = dataclasses.replace(ask, stop=stop, budget_ms=None)
        elif controls.mode == "budget":
            ask = dataclasses.replace(ask, budget_ms=controls.budget_ms)
        steered = (adapted.observation.instruction, ask) != asked
        return adapted, dataclasses.replace(options, ask=ask, steered=steered)

    def publish(self, record: LiveRecord) -> None:
        """Show a decision, and what it was made of; the pictures stay if it was made without any."""
        self._post({"decision": _decision(record)}, record.observation.images or None)

    def show(self, images: Mapping[str, NDArray[np.uint8]] | None, **scene: Any) -> None:
        """Show a local simulator's images and facts (`task`, `step`, `max_steps`, `status`, ...)."""
        self._post({"scene": scene}, images)

    def _post(self, event: dict[str, Any], images: Mapping[str, NDArray[np.uint8]] | None) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, event, images)

    def _deliver(self, event: dict[str, Any], images: Mapping[str, NDArray[np.uint8]] | None) -> None:
        if "decision" in event:
            self._count += 1
            event["decision"]["number"] = self._count
            self._history.append(event["decision"])
        self._scene |= event.get("scene", {})
        if images is not None:
            self._images = images
        for viewer in self._viewers:
            viewer.tell(event.get("decision"), scene="scene" in event, images=images is not None)

    async def serve(self, connection: ServerConnection, metadata: PolicyMetadata) -> None:
        """Serve one browser until it leaves."""
        if len(self._viewers) >= MAX_VIEWERS:
            await connection.close(1013, "too many viewers")
            return
        viewer = _Viewer()
        for decision in self._history:
            viewer.tell(decision, scene=True, images=bool(self._images))
        self._viewers.add(viewer)  # counted before anybody else is let in
        try:
            await connection.send(json.dumps({"hello": self._hello(metadata), "controls": self.controls.model_dump()}))
            sender = asyncio.ensure_future(self._send_to(connection, viewer))
            try:
                async for text in connection:
                    await self._control(connection, text)
            finally:
                sender.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                    await sender
        finally:
            self._viewers.discard(viewer)

    def _hello(self, metadata: PolicyMetadata) -> dict[str, Any]:
        return {
            "name": metadata.name,
            "cameras": list(metadata.cameras),
            "action_dim": metadata.action_dim,
            "chunk_size": metadata.chunk_size,
            "max_depth": self._max_depth,
            "simulator": self._simulator,
        }

    async def _send_to(self, connection: ServerConnection, viewer: "_Viewer") -> None:
        while True:
            await viewer.news.wait()
            message = viewer.collect()
            if message.pop("scene"):
                message["scene"] = self._scene
            if message.pop("images"):
                message["images"] = {camera: _jpeg(image) for camera, image in self._images.items()}
            await connection.send(json.dumps(message))
            await asyncio.sleep(FRAME_S)

    async def _control(self, connection: ServerConnection, text: str | bytes) -> None:
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ConfigError("the controls must be a JSON object.")
            controls = LiveControls.build({**self.controls.model_dump(), **values}, source="not accepted")
            if controls.depth > self._max_depth:
                raise ConfigError(f"not accepted: this server allows at most {self._max_depth} iterations.")
        except (ConfigError, ValueError) as error:
            await connection.send(json.dumps({"error": str(error), "controls": self.controls.model_dump()}))
            return
        self.controls = controls
        for viewer in self._viewers:
            viewer.controls = controls
            viewer.news.set()


class _Viewer:
    """What one browser has not been sent yet."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.controls: LiveControls | None = None
        self._decisions: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        self._scene = True
        self._images = False
        self.news.set()

    def tell(self, decision: dict[str, Any] | None, *, scene: bool, images: bool) -> None:
        if decision is not None:
            self._decisions.append(decision)
        self._scene |= scene
        self._images |= images
        self.news.set()

    def collect(self) -> dict[str, Any]:
        message: dict[str, Any] = {"scene": self._scene, "images": self._images}
        if self._decisions:
            message["decisions"] = list(self._decisions)
        if self.controls is not None:
            message["controls"] = self.controls.model_dump()
        self._decisions.clear()
        self._scene = self._images = False
        self.controls = None
        self.news.clear()
        return message


def _decision(record: LiveRecord) -> dict[str, Any]:
    ask, reply = record.options.ask, record.reply
    stop = ask.stop
    return {
        "instruction": record.observation.instruction,
        "num_recurrences": reply["num_recurrences"],
        "convergence": [_finite(value) for value in reply["convergence"]],
        "limit": None if stop is None else stop.limit,
        "rule": None if stop is None else str(stop),
        "budget_ms": ask.budget_ms,
        "budget_used": reply["budget_used"],
        "n_action_steps": reply["n_action_steps"],
        "signals": {name: _finite(value) for name, value in reply.get("signals", {}).items()},
        "actions": np.round(np.nan_to_num(reply["actions"]), 3).tolist(),
        "policy_ms": round(reply["policy_timing"]["infer_ms"], 2),
        "queue_ms": round(record.answer.queue_ms, 2),
        "total_ms": round(reply["server_timing"]["infer_ms"], 2),
        "batch_size": record.answer.batch_size,
    }


def _finite(value: float) -> float | None:
    """Return `value`, or None where JSON has no word for it."""
    return value if np.isfinite(value) else None


def _jpeg(image: NDArray[np.uint8]) -> str:
    """Return `image` as a data URL, at most `SHOWN_SIDE` pixels wide or high."""
    stride = -(-max(image.shape[:2]) // SHOWN_SIDE)
    encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(image[::stride, ::stride]), quality=88, colorspace="RGB")
    return "data:image/jpeg;base64," + base64.b64encode(encoded).decode("ascii")
