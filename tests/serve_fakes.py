"""Policies and clients for the tests of serving: deterministic, quick, and nothing like a network."""

import subprocess
import threading
from collections.abc import MutableSequence, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from patience import PATIENCE_S
from rdvla.errors import ObservationError
from rdvla.policy import PLAIN, Ask, Policy, PolicyMetadata
from rdvla.server.config import ServeConfig
from rdvla.types import ActionChunk, Observation

CAMERAS = ("primary", "wrist")
STATE_DIM, ACTION_DIM, CHUNK = 8, 7, 8
QUICK = ServeConfig(
    port=0,
    connections_per_minute=1_000_000,
    requests_per_second=1e6,
    max_connections=64,
    deadline_ms=PATIENCE_S * 1000,
    handshake_timeout_s=PATIENCE_S,
    read_timeout_s=PATIENCE_S,
    send_timeout_s=PATIENCE_S,
    shutdown_grace_s=PATIENCE_S,
)


def metadata(cameras: Sequence[str] = CAMERAS, **extra: Any) -> PolicyMetadata:
    return PolicyMetadata("fake", tuple(cameras), STATE_DIM, ACTION_DIM, CHUNK, {"images": {"size": 32}, **extra})


def observation(value: int = 7, *, side: int = 32, instruction: str = "pick up the bowl") -> Observation:
    rng = np.random.default_rng(value)
    images = {camera: rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for camera in CAMERAS}
    return Observation(images, rng.normal(size=STATE_DIM).astype(np.float32), instruction)


def expected_actions(seen: Observation, depth: int, seed: int | None) -> np.ndarray:
    """Return float32 [CHUNK, ACTION_DIM] that depends on every input, so that a mix-up of requests shows."""
    pixels = sum(float(image.astype(np.float64).mean()) for image in seen.images.values())
    words = sum(ord(letter) for letter in seen.instruction) / 1000
    base = pixels + words + float(seen.state.sum()) + depth + (seed or 0) % 1000 / 1000
    steps = np.arange(CHUNK * ACTION_DIM, dtype=np.float64).reshape(CHUNK, ACTION_DIM)
    return np.sin(base + steps).astype(np.float32)


class FakePolicy(Policy):
    """Answers at once, or when `gate` is set; one observation at a time."""

    default_depth = 12
    metadata = metadata()

    def __init__(self, *, cameras: Sequence[str] = CAMERAS) -> None:
        self.metadata = metadata(cameras)
        self.seen: MutableSequence[Observation] = []
        self.threads: set[int] = set()
        self.failure: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.is_deciding = threading.Event()

    def _decide(self) -> None:
        self.is_deciding.set()
        assert self.gate.wait(PATIENCE_S)
        self.is_deciding.clear()

    def infer(self, observation: Observation, ask: Ask = PLAIN) -> ActionChunk:
        stop, budget_ms = ask.stop, ask.budget_ms
        self._decide()
        self.threads.add(threading.get_ident())
        self.seen.append(observation)
        if observation.instruction == "fail" and self.failure is not None:
            raise self.failure
        depth = stop.max_depth if stop else self.default_depth
        affordable = depth if budget_ms is None else max(1, int(budget_ms))
        out_of_time, depth = affordable < depth, min(depth, affordable)
        trace = () if stop is None or stop.name == "fixed" else tuple(1.0 / 2**k for k in range(depth))
        actions = expected_actions(observation, depth, ask.seed)
        return ActionChunk(actions, depth, trace, None, {"total": 1.5}, out_of_time)

    def reset(self) -> None:
        pass


class BatchingPolicy(FakePolicy):
    """Answers several observations at once, and remembers how many."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: MutableSequence[int] = []

    def infer_batch(self, observations: Sequence[Observation], asks: Sequence[Ask]) -> list[ActionChunk]:
        self.batches.append(len(observations))
        if any(seen.instruction == "bad" for seen in observations):
            raise ObservationError("one of the observations is bad.")
        return [self.infer(seen, ask) for seen, ask in zip(observations, asks, strict=True)]


def open_socket(url: str, **options: Any) -> ClientConnection:
    """Return an open websocket; websockets 17 wants its `connect` entered."""
    return connect(url, compression=None, proxy=None, open_timeout=PATIENCE_S, **options).__enter__()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return the files of a self-signed certificate for 127.0.0.1 and of its private key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key
