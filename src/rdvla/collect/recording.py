"""Plays one demonstration and turns it into one file."""

import io
import json
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rdvla.data.images import encode_png
from rdvla.envs import episode
from rdvla.envs.base import Env, Seed, Suite
from rdvla.errors import DatasetError
from rdvla.files import DAMAGED_ARRAYS
from rdvla.jobs.pool import TaskKey


class AlreadySolvedError(Exception):
    """The task is solved before the demonstration begins. It is no error: the attempt leaves no demonstration."""


class Demonstrator(Protocol):
    """What is recorded: an expert that says both what it wants and what it does (`NoisyExpert`)."""

    def prepare(self, suite: Suite) -> None:
        """Get ready for a task of `suite`, before its environment starts.

        Raises:
            ConfigError: that is not possible there.
        """
        ...

    def reset(self, env: Any, *, seed: int) -> None:
        """Start an episode; everything random comes from `seed`.

        Raises:
            AlreadySolvedError: it is over already.
        """
        ...

    def act(self, env: Any) -> Any:
        """Return `clean` (the label) and `executed` (what the environment gets), float32 `[action_dim]` each."""
        ...


@dataclass(frozen=True, order=True)
class Attempt:
    """One try at one task. What happens in it follows from these four values alone.

    Attributes:
        suite: benchmark suite.
        task_id: index within the suite.
        number: counts the tries at this task, from 0.
        seed: the seed of the whole collection.
    """

    suite: str
    task_id: int
    number: int
    seed: int

    @property
    def task(self) -> TaskKey:
        """Suite and task id."""
        return (self.suite, self.task_id)

    def __str__(self) -> str:
        return f"{self.suite} task {self.task_id}, attempt {self.number}"

    def seeds(self) -> tuple[int, int]:
        """Return the seeds of the placement and of the noise, each below 2**32."""
        key = [self.seed, zlib.crc32(self.suite.encode()), self.task_id, self.number]
        placement, noise = np.random.SeedSequence(key).generate_state(2)
        return int(placement), int(noise)


class Play(NamedTuple):
    """How an attempt went.

    Attributes:
        demonstration: what was recorded, None if no stage was solved (or solved before there was a step to record).
        num_steps: control steps played.
        seconds: wall-clock time, reset and rendering included.
    """

    demonstration: "Demonstration | None"
    num_steps: int
    seconds: float


@dataclass(frozen=True)
class Part:
    """The rows of a demonstration that solve one stage.

    Attributes:
        name: the benchmark's own name of the goal.
        instruction: the goal in words.
        length: number of rows.
    """

    name: str
    instruction: str
    length: int


@dataclass(frozen=True)
class Demonstration:
    """The solved stages of an episode, N control steps.

    Attributes:
        attempt: which try it was.
        parts: one per solved stage, one after the other; at least one.
        states: float32 `[N, S]`, before each action.
        actions: float32 `[N, A]`, the clean actions.
        image_index: int64 `[N]`, which image each row shows.
        fresh: bool `[N]`, whether that image was rendered at that row.
        images: camera name -> PNG files.
        seconds: wall-clock time it took.
        versions: what the simulation depends on.
    """

    attempt: Attempt
    parts: tuple[Part, ...]
    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    image_index: NDArray[np.int64]
    fresh: NDArray[np.bool_]
    images: Mapping[str, tuple[bytes, ...]]
    seconds: float
    versions: Mapping[str, str]

    @property
    def length(self) -> int:
        """Number of rows N."""
        return len(self.actions)

    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """Return camera name -> height and width in pixels; nothing is decoded."""
        sizes = {}
        for camera, files in self.images.items():
            width, height = Image.open(io.BytesIO(files[0])).size
            sizes[camera] = (height, width)
        return sizes

    def decoded_images(self) -> dict[str, list[NDArray[np.uint8]]]:
        """Return camera name -> uint8 `[H, W, 3]` images."""
        return {
            camera: [np.asarray(Image.open(io.BytesIO(content))) for content in files]
            for camera, files in self.images.items()
        }

    def to_bytes(self) -> bytes:
        """Return the content of a staged file (npz; no pickling)."""
        head = {
            "attempt": asdict(self.attempt),
            "parts": [asdict(part) for part in self.parts],
            "seconds": self.seconds,
            "versions": dict(self.versions),
        }
        arrays: dict[str, NDArray[Any]] = {"head": np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)}
        for name in ("states", "actions", "image_index", "fresh"):
            arrays[name] = getattr(self, name)
        for camera, files in self.images.items():
            arrays[f"sizes/{camera}"] = np.array([len(content) for content in files])
            arrays[f"png/{camera}"] = np.frombuffer(b"".join(files), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, source: str) -> Self:
        """Read a staged file.

        Raises:
            DatasetError: it is damaged; `source` names it.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                head = json.loads(arrays["head"].tobytes())
                cameras = [name.removeprefix("png/") for name in arrays.files if name.startswith("png/")]
                columns = {name: arrays[name] for name in ("states", "actions", "image_index", "fresh")}
                parts = tuple(Part(**part) for part in head.pop("parts"))
                images = {camera: _split(arrays[f"png/{camera}"], arrays[f"sizes/{camera}"]) for camera in cameras}
            attempt = Attempt(**head.pop("attempt"))
        except DAMAGED_ARRAYS as error:
            raise DatasetError(f"'{source}' is damaged ({error}); delete it and repeat the command.") from None
        return cls(attempt=attempt, parts=parts, images=images, **columns, **head)


def play(env: Env, expert: Demonstrator, attempt: Attempt, render_every: int) -> Play:
    """Play `attempt` in `env` until it is solved or out of steps; every `render_every`-th step of a stage is rendered.

    Raises:
        SimulatorError: the simulator broke.
    """
    began = time.monotonic()
    placement, noise = attempt.seeds()
    env.reset(Seed(placement))
    try:
        expert.reset(env, seed=noise)
    except AlreadySolvedError:
        return Play(None, 0, time.monotonic() - began)
    states: list[NDArray[np.float32]] = []
    actions: list[NDArray[np.float32]] = []
    fresh: list[bool] = []
    images: dict[str, list[bytes]] = {}
    parts: list[Part] = []
    for turn in episode.turns(env):
        if turn.first:
            stage_began = len(actions)
        fresh.append((len(actions) - stage_began) % render_every == 0)
        if fresh[-1]:
            for camera, image in env.observe().images.items():
                images.setdefault(camera, []).append(encode_png(image))
        states.append(env.state())
        clean, executed = expert.act(env)
        actions.append(clean)
        if turn.execute(executed):
            parts.append(Part(turn.stage.name, turn.stage.instruction, len(actions) - stage_began))
    seconds = time.monotonic() - began
    if not parts:
        return Play(None, len(actions), seconds)
    rows = sum(part.length for part in parts)
    image_index = np.cumsum(fresh[:rows]) - 1
    demonstration = Demonstration(
        attempt=attempt,
        parts=tuple(parts),
        states=np.stack(states[:rows]).astype(np.float32),
        actions=np.stack(actions[:rows]).astype(np.float32),
        image_index=image_index,
        fresh=np.array(fresh[:rows]),
        images={camera: tuple(files[: image_index[-1] + 1]) for camera, files in images.items()},
        seconds=seconds,
        versions=env.versions(),
    )
    return Play(demonstration, len(actions), seconds)


def _split(content: NDArray[np.uint8], sizes: NDArray[np.int64]) -> tuple[bytes, ...]:
    return tuple(part.tobytes() for part in np.split(content, np.cumsum(sizes)[:-1]))
