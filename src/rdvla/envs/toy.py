"""A tabletop in numpy, with no simulator: the same interfaces as LIBERO, hundreds of times faster.

A point-like hand moves above a table with three coloured squares. A task names one of them and asks to reach it or
to pick it up. Cameras, state and actions have LIBERO's layout, so collection, training and evaluation can be tried
in seconds. Everything is deterministic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rdvla.embodiment import LIBERO, Embodiment
from rdvla.envs.base import InitState, Seed, Stage, Start, Suite, TaskSpec, pick
from rdvla.errors import ConfigError, SimulatorError
from rdvla.types import Observation

SUITE = "toy"
MAX_STEPS = 60
NUM_INIT_STATES = 50
EMBODIMENT = replace(LIBERO, cameras={"primary": (64, 64), "wrist": (64, 64)})

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 200)}
_TABLE = (225, 215, 200)
_HAND_OPEN = (90, 90, 90)
_HAND_CLOSED = (20, 20, 20)
_BASE = (120, 120, 130)

_TASKS = [(verb, colour) for verb in ("reach", "pick up") for colour in COLOURS]
_SPEED = 0.1
_GRIPPER_SPEED = 0.5
_TOLERANCE = 0.1
_REACH_HEIGHT = 0.15
_LIFT_HEIGHT = 0.4
_SQUARE = 0.12
_WRIST_VIEW = 0.6
_HOME = np.array([-0.8, 0.0, 0.6])


@dataclass(frozen=True)
class ToyPrivileged:
    """What only the toy knows; for scripted experts.

    Attributes:
        target: float64 `[3]`, where the named square is (z is 0 on the table).
        hand: float64 `[3]`, where the hand is.
        opening: 1 for an open gripper, 0 for a closed one.
        must_lift: whether the task is to pick the square up, not only to reach it.
        holding: whether the hand holds the named square.
    """

    target: NDArray[np.float64]
    hand: NDArray[np.float64]
    opening: float
    must_lift: bool
    holding: bool


def list_tasks() -> list[TaskSpec]:
    """Return the toy's tasks: reach or pick up each of three squares."""
    return [
        TaskSpec(SUITE, index, f"{verb}_{colour}".replace(" ", "_"), f"{verb} the {colour} square", MAX_STEPS)
        for index, (verb, colour) in enumerate(_TASKS)
    ]


class ToySuite(Suite):
    """The toy's six tasks."""

    embodiment = EMBODIMENT
    expert = "rdvla.experts.toy:make_expert"

    def tasks(self) -> Sequence[TaskSpec]:
        """Return reach and pick up, for each of three squares."""
        return list_tasks()

    def num_init_states(self, task_id: int) -> int:
        """Return the same number for every task."""
        return NUM_INIT_STATES

    def make_env(self, task_id: int, *, camera_size: int | None = None) -> "ToyEnv":
        """Prepare a task; there is no simulator to start."""
        return ToyEnv(task_id, camera_size=camera_size)


def suites() -> Mapping[str, Suite]:
    """Return the one suite there is, by name."""
    return {SUITE: ToySuite(SUITE)}


class ToyEnv:
    """One toy task.

    The table spans [-1, 1] in x (away from the robot's base) and y (to its left); heights are in [0, 1]. An action is
    float `[7]`: three translations in [-1, 1] (a step of 1 moves 0.1), three rotations without effect, and the
    gripper (-1 open, +1 close). The state is float32 `[8]`: position (3), zeros (3), and the two fingers at
    plus and minus the opening.
    """

    stage_index = 0  # the only one

    def __init__(self, task_id: int, *, camera_size: int | None = None) -> None:
        """Prepare a task; `reset` starts it.

        Args:
            task_id: index in `list_tasks()`.
            camera_size: height and width of the images in pixels; None takes 64.

        Raises:
            ConfigError: an unknown task or a camera size below 1.
        """
        self._task = pick(list_tasks(), task_id, "task_id", f"suite '{SUITE}' has tasks")
        self._embodiment = EMBODIMENT.with_pictures(camera_size)
        self.num_steps = 0
        self.num_renders = 0
        self._verb, self._colour = _TASKS[task_id]
        self._hand = _HOME.copy()
        self._opening = 1.0
        self._held: str | None = None
        self._squares: dict[str, NDArray[np.float64]] = {}

    @property
    def task(self) -> TaskSpec:
        """The task being simulated."""
        return self._task

    @property
    def embodiment(self) -> Embodiment:
        """LIBERO's layouts, with small pictures."""
        return self._embodiment

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The task itself."""
        return self._task.stages

    def reset(self, start: Start) -> None:
        """Place the squares, by the number of a bundled state or by a seed; the two never give the same placement.

        Raises:
            ConfigError: a state or seed out of range.
        """
        match start:
            case InitState(index):
                owner = f"toy task {self.task.task_id} has states"
                stream = (0, pick(range(NUM_INIT_STATES), index, "init_state", owner))
            case Seed(value):
                stream = (1, value)
        self._squares = _place_squares(np.random.default_rng([self.task.task_id, *map(int, stream)]))
        self._hand = _HOME.copy()
        self._opening = 1.0
        self._held = None

    def observe(self) -> Observation:
        """Draw both cameras and return what a policy sees."""
        images = {camera: self.frame(camera) for camera in EMBODIMENT.cameras}
        return Observation(images=images, state=self.state(), instruction=self.task.instruction)

    def frame(self, camera: str = "primary", size: int | None = None) -> NDArray[np.uint8]:
        """Draw one camera: `primary` sees the whole table from above, `wrist` what is around the hand.

        Raises:
            ConfigError: an unknown camera.
        """
        self._require_reset("frame")
        self.num_renders += 1
        pixels = self._embodiment.cameras["primary"][0] if size is None else size
        if camera == "primary":
            return self._draw(np.zeros(2), 1.0, pixels, with_hand=True)
        if camera == "wrist":
            return self._draw(self._hand[:2], _WRIST_VIEW * (0.5 + self._hand[2]), pixels, with_hand=False)
        raise ConfigError(f"unknown camera '{camera}'. Known: primary, wrist.")

    def state(self) -> NDArray[np.float32]:
        """Return the state vector, float32 `[8]`."""
        self._require_reset("state")
        return np.concatenate([self._hand, np.zeros(3), [self._opening, -self._opening]]).astype(np.float32)

    def step(self, action: NDArray[np.float32]) -> bool:
        """Execute one action `[7]`; return whether the task is solved.

        Raises:
            ConfigError: the action has another shape or is not finite.
        """
        self._require_reset("step")
        action = EMBODIMENT.check_action(action).astype(np.float64)
        self.num_steps += 1
        self._hand = np.clip(self._hand + _SPEED * np.clip(action[:3], -1, 1), [-1, -1, 0], 1)
        self._opening = float(np.clip(self._opening - _GRIPPER_SPEED * np.sign(action[6]), 0, 1))
        self._update_grasp()
        return self._solved()

    def privileged(self) -> ToyPrivileged:
        """Return what a policy must not see; for scripted experts only."""
        self._require_reset("privileged")
        return ToyPrivileged(
            target=self._squares[self._colour].copy(),
            hand=self._hand.copy(),
            opening=self._opening,
            must_lift=self._verb == "pick up",
            holding=self._held == self._colour,
        )

    def versions(self) -> dict[str, str]:
        """Return the versions that decide an episode's outcome."""
        return {"numpy": np.__version__}

    def close(self) -> None:
        """Forget the episode; there is nothing else to release."""
        self._squares = {}

    def _update_grasp(self) -> None:
        if self._opening > 0.0:
            self._release()
        elif self._held is None and self._hand[2] < _REACH_HEIGHT:
            near = [name for name in self._squares if self._above(name)]
            self._held = min(near, key=self._distance) if near else None
        if self._held is not None:
            self._squares[self._held] = self._hand.copy()

    def _release(self) -> None:
        if self._held is not None:
            self._squares[self._held][2] = 0.0
            self._held = None

    def _distance(self, name: str) -> float:
        return float(np.abs(self._squares[name][:2] - self._hand[:2]).max())

    def _above(self, name: str) -> bool:
        return self._distance(name) < _TOLERANCE

    def _solved(self) -> bool:
        if self._verb == "reach":
            return self._above(self._colour) and bool(self._hand[2] < _REACH_HEIGHT)
        return self._held == self._colour and bool(self._hand[2] > _LIFT_HEIGHT)

    def _require_reset(self, method: str) -> None:
        if not self._squares:
            raise SimulatorError(f"{method}: call reset first, and nothing after close.")

    def _draw(self, centre: NDArray[np.float64], half: float, size: int, *, with_hand: bool) -> NDArray[np.uint8]:
        """Look down on `centre`, `half` to each side. The robot's base is at the top; its left is on the right."""
        ticks = (np.arange(size) + 0.5) / size * 2 - 1
        x = (centre[0] + half * ticks)[:, None]
        y = (centre[1] + half * ticks)[None, :]
        image = np.empty((size, size, 3), dtype=np.uint8)
        image[:] = _TABLE
        image[np.broadcast_to(x < -0.93, (size, size))] = _BASE
        for name, position in sorted(self._squares.items(), key=lambda item: item[1][2]):
            edge = _SQUARE * (1 + 0.5 * position[2])
            image[(np.abs(x - position[0]) < edge) & (np.abs(y - position[1]) < edge)] = COLOURS[name]
        if with_hand:
            radius = np.hypot(x - self._hand[0], y - self._hand[1])
            ring = np.abs(radius - 0.08 - 0.06 * self._hand[2]) < 0.04
            image[ring] = _HAND_OPEN if self._opening > 0 else _HAND_CLOSED
        return image


def _place_squares(rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """Place the squares so that no two overlap: a shuffled row of three, each jittered."""
    rows = rng.permutation([-0.6, 0.0, 0.6])
    jitter = rng.uniform(-0.12, 0.12, size=(3, 2))
    return {
        name: np.array([0.2 + 3 * jitter[index, 0], rows[index] + jitter[index, 1], 0.0])
        for index, name in enumerate(COLOURS)
    }
