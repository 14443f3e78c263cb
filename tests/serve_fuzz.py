"""Throws random and mutated frames at a server in another process, with a well-behaved client beside them.

    python tests/serve_fuzz.py --frames 100000

prints what was sent, how the server answered, its memory over time and what the good client saw; the exit code is 1
if the server died, a good answer was wrong or missing, memory grew, or anything in a frame was executed. The tests
run the same with fewer frames.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgpack
import numpy as np

from patience import PATIENCE_S
from rdvla.policy import Ask
from rdvla.robot.client import RemotePolicy
from rdvla.server.background import serving
from rdvla.wire.adapters import to_message
from rdvla.wire.codec import encode
from serve_fakes import QUICK, BatchingPolicy, expected_actions, observation

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
WORKERS = 8
GROWTH_MIB = 24.0


class Bomb:
    """Unpickling one of these would create the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@dataclass
class Outcome:
    """What a run of the fuzzer saw."""

    sent: collections.Counter[str] = field(default_factory=collections.Counter)
    answers: collections.Counter[str] = field(default_factory=collections.Counter)
    memory_mib: list[float] = field(default_factory=list)
    good_answers: int = 0
    good_errors: list[str] = field(default_factory=list)
    good_worst_ms: float = 0.0
    seconds: float = 0.0
    server_died: bool = False
    executed: bool = False

    def faults(self) -> list[str]:
        """Return what went wrong, in words."""
        grown = self.memory_mib[-1] - self.memory_mib[len(self.memory_mib) // 5]
        found = {
            "the server died": self.server_died,
            "something in a frame was executed": self.executed,
            f"the good client failed: {self.good_errors[:3]}": bool(self.good_errors),
            "the good client was never answered": self.good_answers == 0,
            f"memory grew by {grown:.1f} MiB": grown > GROWTH_MIB,
            "frames without any answer or close": self.answers["silence"] > 0,
            "an answer outside the protocol": self.answers["unknown"] > 0,
        }
        return [fault for fault, is_so in found.items() if is_so]


class Frames:
    """An endless supply of bad (and a few good) bytes; each is (kind, bytes to send after the handshake)."""

    def __init__(self, seed: int, bomb: Path) -> None:
        self.rng = random.Random(seed)
        self.bomb = bomb
        seen = observation(1, side=8)
        self.good = encode({**to_message(seen), "seed": 1, "depth": 3})
        libero = {
            "observation/image": seen.images["primary"],
            "observation/wrist_image": seen.images["wrist"],
            "observation/state": seen.state,
            "prompt": "go",
        }
        self.seeds = [self.good, encode(libero), encode({**to_message(seen), "stop": {"name": "latent"}})]
        self.makers = [self.random_bytes, self.mutated, self.mutated, self.spliced, self.values, self.arrays,
                       self.pickled, self.options, self.websocket, self.http, self.valid]  # fmt: skip

    def next(self) -> tuple[str, bytes]:
        maker = self.rng.choice(self.makers)
        return maker.__name__, maker()

    def random_bytes(self) -> bytes:
        return frame(self.rng.randbytes(self.rng.choice([0, 1, 2, 7, 50, 600])))

    def mutated(self) -> bytes:
        data = bytearray(self.rng.choice(self.seeds))
        for _ in range(self.rng.randint(1, 8)):
            at, action = self.rng.randrange(len(data)), self.rng.random()
            if action < 0.6:
                data[at] = self.rng.randrange(256)
            elif action < 0.8:
                data[at:at] = self.rng.randbytes(self.rng.randint(1, 5))
            else:
                del data[at : at + self.rng.randint(1, 5)]
        return frame(bytes(data))

    def spliced(self) -> bytes:
        one, two = self.rng.choice(self.seeds), self.rng.choice(self.seeds)
        return frame(one[: self.rng.randrange(len(one))] + two[self.rng.randrange(len(two)) :])

    def values(self) -> bytes:
        message = {key: self._value(3) for key in self.rng.sample(["images", "state", "prompt", "instruction", "x"], 3)}
        return frame(msgpack.packb(message))

    def arrays(self) -> bytes:
        shapes = [[3], [-1], [2**62, 4], [0], [1] * 40, [8, 8, 3], ["3"], [3.5], 7, None, []]
        dtypes = ["<f4", "|O", "O", "|V8", "<U4", "<c16", "f8,O", ">f4", "|u1", 5, None, ["<f4"], "<f4" * 100]
        array = {
            b"__ndarray__": True,
            b"data": self.rng.choice([self.rng.randbytes(12), b"", "text", None, self._pickle()]),
            b"dtype": self.rng.choice(dtypes),
            b"shape": self.rng.choice(shapes),
        }
        message = {"images": {"primary": array, "wrist": array}, "state": array, "instruction": "go"}
        return frame(msgpack.packb(message))

    def pickled(self) -> bytes:
        return frame(self._pickle())

    def options(self) -> bytes:
        key = self.rng.choice(["depth", "stop", "budget_ms", "seed", "deadline_ms", "instruction", "state"])
        message = {**to_message(observation(2, side=4)), key: self._value(2)}
        with contextlib.suppress(Exception):
            return frame(encode(message))
        return frame(b"\xc1")

    def websocket(self) -> bytes:
        good = frame(self.good)
        return self.rng.choice(
            [
                bytes([0x80 | self.rng.randrange(16)]) + good[1:],
                good[:1] + bytes([good[1] & 0x7F]) + good[2:],
                bytes([good[0] | 0x40]) + good[1:],
                b"\x82\xff" + struct.pack(">Q", 2**62) + b"\0\0\0\0x",
                b"\x88\x80\0\0\0\0",
                b"\x89\xfe" + struct.pack(">H", 500) + b"\0" * 504,
                b"\x02\x81\0\0\0\0a" + b"\x02\x81\0\0\0\0a",
                self.rng.randbytes(40),
            ]
        )

    def http(self) -> bytes:
        """Replaces the handshake; see `Attacker`."""
        lines = [b"GET / HTTP/1.1", b"POST / HTTP/1.1", b"GET /metrics HTTP/1.1", b"GET /" + b"a" * 9000 + b" HTTP/1.1",
                 b"\x16\x03\x01\x02\x00", self.rng.randbytes(30), b"GET / HTTP/9.9", b""]  # fmt: skip
        headers = [b"Host: x", b"Upgrade: websocket", b"Authorization: Api-Key " + self.rng.randbytes(8).hex().encode(),
                   b"Content-Length: 99999999", b"Origin: http://evil.example", b"X: " + b"y" * 9000]  # fmt: skip
        return b"\r\n".join([self.rng.choice(lines), *self.rng.sample(headers, 3)]) + b"\r\n\r\n"

    def valid(self) -> bytes:
        return frame(self.good)

    def _pickle(self) -> bytes:
        return pickle.dumps({"state": Bomb(self.bomb)})

    def _value(self, depth: int) -> object:
        kind = self.rng.randrange(9 if depth else 7)
        if kind == 7:
            return [self._value(depth - 1) for _ in range(self.rng.randrange(4))]
        if kind == 8:
            return {str(self.rng.randrange(9)): self._value(depth - 1) for _ in range(self.rng.randrange(4))}
        simple = [None, self.rng.random() * 10 ** self.rng.randint(-300, 300), self.rng.randint(-(2**63), 2**64 - 1),
                  "é" * self.rng.randrange(50), self.rng.randbytes(9), float("nan"), True]  # fmt: skip
        return simple[kind]


def frame(payload: bytes) -> bytes:
    """Return a final binary websocket frame, masked with zeros."""
    if len(payload) < 126:
        header = struct.pack(">BB", 0x82, 0x80 | len(payload))
    elif len(payload) < 2**16:
        header = struct.pack(">BBH", 0x82, 0x80 | 126, len(payload))
    else:
        header = struct.pack(">BBQ", 0x82, 0x80 | 127, len(payload))
    return header + b"\0\0\0\0" + payload


class Attacker:
    """One connection after the other, each used as long as the server lets it."""

    def __init__(self, port: int, frames: Frames, outcome: Outcome) -> None:
        self.port, self.frames, self.outcome = port, frames, outcome
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def attack(self) -> None:
        kind, data = self.frames.next()
        self.outcome.sent[kind] += 1
        try:
            async with asyncio.timeout(PATIENCE_S):
                self.outcome.answers[await self._exchange(kind, data)] += 1
        except TimeoutError:
            self.outcome.answers["silence"] += 1
            await self.close()
        except (OSError, asyncio.IncompleteReadError):
            self.outcome.answers["closed"] += 1
            await self.close()

    async def _exchange(self, kind: str, data: bytes) -> str:
        if kind == "http":
            await self.close()
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            self.writer.write(data)
            self.writer.write_eof()
            answer = await self.reader.read(20_000)
            await self.close()
            return "http " + answer[9:12].decode() if answer.startswith(b"HTTP/1.1 ") else "closed"
        if self.writer is None:
            await self._open()
        assert self.reader is not None
        assert self.writer is not None
        self.writer.write(data)
        if kind == "websocket":
            self.writer.write_eof()
        while True:
            opcode, payload = await self._read_frame()
            if opcode == 8:
                await self.close()
                return f"close {int.from_bytes(payload[:2], 'big')}"
            if opcode == 1:
                code = payload.decode().split(":")[0]
                await self.close()
                return code if code in ("bad_request", "busy", "deadline", "rate_limit") else "unknown"
            if opcode == 2:
                return "answered"

    async def _open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(HANDSHAKE)
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        await self._read_frame()

    async def _read_frame(self) -> tuple[int, bytes]:
        assert self.reader is not None
        first, length = await self.reader.readexactly(2)
        if length == 126:
            length = int.from_bytes(await self.reader.readexactly(2), "big")
        elif length == 127:
            length = int.from_bytes(await self.reader.readexactly(8), "big")
        return first & 15, await self.reader.readexactly(length)

    async def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            with contextlib.suppress(OSError):
                await self.writer.wait_closed()
        self.reader = self.writer = None


def run(frames: int, *, seed: int = 0, max_seconds: float = 1e9) -> Outcome:
    """Attack a fresh server with `frames` frames, or as many as fit into `max_seconds`."""
    outcome = Outcome()
    command = [sys.executable, __file__, "--serve"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = int(server.stdout.readline())
    stop = threading.Event()
    friend = threading.Thread(target=_good_client, args=(port, outcome, stop))
    friend.start()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bomb = Path(folder) / "executed"
        try:
            asyncio.run(_attack(port, frames, seed, bomb, server, outcome, started + max_seconds))
        finally:
            stop.set()
            friend.join()
            outcome.server_died = server.poll() is not None
            outcome.executed = bomb.exists()
            server.communicate("stop\n", timeout=PATIENCE_S)
    outcome.seconds = time.monotonic() - started
    return outcome


async def _attack(
    port: int, frames: int, seed: int, bomb: Path, server: "subprocess.Popen[str]", outcome: Outcome, until: float
) -> None:
    left = frames

    async def work(number: int) -> None:
        nonlocal left
        attacker = Attacker(port, Frames(seed * 1000 + number, bomb), outcome)
        while left > 0 and time.monotonic() < until and server.poll() is None:
            left -= 1
            await attacker.attack()
            if left % max(1, frames // 20) == 0:
                outcome.memory_mib.append(_memory_mib(server.pid))
        await attacker.close()

    await asyncio.gather(*(work(number) for number in range(WORKERS)))
    outcome.memory_mib.append(_memory_mib(server.pid))


def _memory_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def _good_client(port: int, outcome: Outcome, stop: threading.Event) -> None:
    with RemotePolicy(f"ws://127.0.0.1:{port}") as policy:
        while not (stop.is_set() and outcome.good_answers):
            seen, started = observation(outcome.good_answers % 50), time.monotonic()
            actions = policy.infer(seen, Ask(seed=5)).actions
            outcome.good_worst_ms = max(outcome.good_worst_ms, (time.monotonic() - started) * 1000)
            if not np.array_equal(actions, expected_actions(seen, 12, 5)):
                outcome.good_errors.append("wrong actions")
            outcome.good_answers += 1
            time.sleep(0.02)
        if policy.reconnects:
            outcome.good_errors.append(f"{policy.reconnects} reconnects")


def _serve() -> None:
    policy = BatchingPolicy()
    policy.seen = collections.deque(maxlen=1)  # the fake must not be the leak
    policy.batches = collections.deque(maxlen=1)
    with serving(policy, QUICK) as server:
        sys.stdout.write(f"{server.port}\n")
        sys.stdout.flush()
        sys.stdin.readline()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-seconds", type=float, default=1200)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        _serve()
        return 0
    outcome = run(arguments.frames, seed=arguments.seed, max_seconds=arguments.max_seconds)
    report = {
        "frames": sum(outcome.sent.values()),
        "seconds": round(outcome.seconds, 1),
        "sent": dict(outcome.sent.most_common()),
        "answers": dict(outcome.answers.most_common()),
        "memory_mib": [round(value, 1) for value in outcome.memory_mib],
        "good_client": {"answers": outcome.good_answers, "worst_ms": round(outcome.good_worst_ms, 1)},
        "faults": outcome.faults(),
    }
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 1 if outcome.faults() else 0


if __name__ == "__main__":
    sys.exit(main())
