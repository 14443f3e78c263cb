"""A world in which time, network and server are numbers: everything deterministic, nothing waits.

`World` says when the server is up and how long an answer takes. `FakeConnection` is a connection to it.
`SimulatedDecider` runs the real `RemotePolicy` over such connections as if in another thread: on a clock of its own
that starts at the moment of the request; the outcome is there once the loop's clock has got that far.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from rdvla.errors import RDVLAError
from rdvla.policy import Ask, Policy, PolicyMetadata
from rdvla.robot.connection import Connection, ConnectionLost
from rdvla.robot.loop import Outcome
from rdvla.types import ActionChunk, Observation
from rdvla.wire.codec import decode, encode
from rdvla.wire.protocol import metadata_message, reply_message
from serve_fakes import ACTION_DIM, CHUNK, metadata, observation


class FakeClock:
    """Time that passes only when somebody sleeps."""

    def __init__(self, start: float = 0.0) -> None:
        self.time = start

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += max(0.0, seconds)


@dataclass
class World:
    """A server and the way to it.

    `outages` are intervals in which nobody listens; connections open at their start break. `latency` gives the
    seconds of the next answer; `loses` whether the next answer is lost on its way (the connection breaks).
    """

    latency: Callable[[], float] = lambda: 0.02
    loses: Callable[[], bool] = lambda: False
    outages: Sequence[tuple[float, float]] = ()
    refusals: list[str] = field(default_factory=list)
    metadata: PolicyMetadata = field(default_factory=metadata)
    decided: list[int] = field(default_factory=list)
    opened: int = 0

    def is_up(self, time: float) -> bool:
        return not any(start <= time < end for start, end in self.outages)

    def breaks_after(self, time: float) -> float:
        return min((start for start, _ in self.outages if start > time), default=float("inf"))

    def connector(self, clock: FakeClock) -> Callable[[float], Connection]:
        def connect(timeout_s: float) -> Connection:
            clock.sleep(0.001)
            if not self.is_up(clock.now()):
                raise ConnectionLost("nobody listens")
            self.opened += 1
            return FakeConnection(self, clock)

        return connect


class FakeConnection:
    """One connection: answers arrive at known times, in order, and a late one stays in the pipe."""

    def __init__(self, world: World, clock: FakeClock) -> None:
        self.world, self.clock = world, clock
        self.breaks_at = world.breaks_after(clock.now())
        self.pipe: list[tuple[float, bytes | str | None]] = [
            (clock.now(), encode(metadata_message(world.metadata, server_version="test")))
        ]
        self.closed = False

    def send(self, frame: bytes) -> None:
        assert not self.closed
        if self.clock.now() >= self.breaks_at:
            raise ConnectionLost("broken pipe")
        request = decode(frame)
        marker = round(float(request["state"][0]))
        arrives = max(self.clock.now() + self.world.latency(), self.pipe[-1][0] if self.pipe else 0.0)
        if self.world.refusals:
            self.pipe.append((arrives, self.world.refusals.pop(0)))
            return
        self.world.decided.append(marker)
        chunk = ActionChunk(marked_actions(marker), 3, (0.5, 0.1))
        reply = encode(
            reply_message(chunk, n_action_steps=5, policy_ms=1.0, server_timing={"infer_ms": 1.0}, budget_ms=None)
        )
        self.pipe.append((arrives, None if self.world.loses() else reply))

    def receive(self, timeout_s: float) -> bytes | str:
        assert not self.closed
        until = self.clock.now() + timeout_s
        arrives, message = self.pipe[0] if self.pipe else (float("inf"), None)
        if self.breaks_at <= min(arrives, until):
            self.clock.time = max(self.clock.time, self.breaks_at)
            raise ConnectionLost("connection reset")
        if arrives > until:
            self.clock.time = until
            raise TimeoutError
        self.clock.time = max(self.clock.time, arrives)
        self.pipe.pop(0)
        if message is None:
            raise ConnectionLost("connection reset")
        return message

    def close(self) -> None:
        self.closed = True


class SimulatedDecider:
    """Runs a policy as if in a thread of its own; `make_policy` gets the clock of that thread."""

    def __init__(self, clock: FakeClock, make_policy: Callable[[FakeClock], Policy]) -> None:
        self.clock = clock
        self.thread_clock = FakeClock(clock.now())
        self.policy = make_policy(self.thread_clock)
        self.outcome: tuple[float, Outcome] | None = None

    def submit(self, observation: Observation, ask: Ask) -> None:
        assert self.outcome is None, "the loop asked before it collected"
        self.thread_clock.time = self.clock.now()
        try:
            outcome = Outcome(self.policy.infer(observation, ask))
        except RDVLAError as error:
            outcome = Outcome(None, error)
        self.outcome = (self.thread_clock.now(), outcome)

    def collect(self, wait_s: float) -> Outcome | None:
        until = self.clock.now() + wait_s
        if self.outcome is None or self.outcome[0] > until:
            self.clock.time = until
            return None
        ready, outcome = self.outcome
        self.clock.time = max(self.clock.time, ready)
        self.outcome = None
        return outcome


def marked_actions(marker: int) -> np.ndarray:
    """Return a chunk whose action i is [marker, i, marker + i, 0, ...]: what was seen, and for which step."""
    actions = np.zeros((CHUNK, ACTION_DIM), np.float32)
    actions[:, 0], actions[:, 1] = marker, np.arange(CHUNK)
    actions[:, 2] = marker + np.arange(CHUNK)
    return actions


def marked_observation(marker: int) -> Observation:
    """Return an observation whose state says `marker` (the control step it was taken at)."""
    seen = observation(0, side=2)
    return Observation(seen.images, np.array([marker, 0, 0, 0, 0, 0, 0, 0], np.float32), seen.instruction)


def jitter(seed: int, low: float, high: float, *, spikes: float = 0.0, spike_s: float = 2.0) -> Callable[[], float]:
    """Return latencies uniform in low..high seconds, and `spike_s` with probability `spikes`."""
    rng = random.Random(seed)
    return lambda: spike_s if rng.random() < spikes else rng.uniform(low, high)


def chance(seed: int, probability: float) -> Callable[[], bool]:
    """Return a coin that shows True with `probability`."""
    rng = random.Random(seed)
    return lambda: rng.random() < probability
