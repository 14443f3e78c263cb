"""What an environment offers: a policy's view on demand, and the physics; and what a suite of them is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rdvla.embodiment import Embodiment
from rdvla.errors import ConfigError
from rdvla.types import Observation

T = TypeVar("T")


@dataclass(frozen=True)
class InitState:
    """An episode starts from a bundled initial state: the benchmark's evaluation protocol.

    Attributes:
        index: number of the state, from 0.
    """

    index: int

    def __str__(self) -> str:
        return f"state {self.index}"


@dataclass(frozen=True)
class Seed:
    """An episode starts from a placement that the environment's own sampler draws; never a bundled one.

    Attributes:
        value: seed of the sampler, in [0, 2**32).

    Raises:
        ConfigError: it is not.
    """

    value: int

    def __post_init__(self) -> None:
        whole = isinstance(self.value, int | np.integer) and not isinstance(self.value, bool)
        if not whole or not 0 <= self.value < 2**32:
            raise ConfigError(f"seed = {self.value!r} must be an integer in [0, 2**32).")

    def __str__(self) -> str:
        return f"seed {self.value}"


Start = InitState | Seed


def pick(items: Sequence[T], index: object, name: str, owner: str) -> T:
    """Return the item with the number `index`.

    Raises:
        ConfigError: there is none; the message says that `name` is wrong and what `owner` has.
    """
    if isinstance(index, bool) or not isinstance(index, int | np.integer) or not 0 <= index < len(items):
        raise ConfigError(f"{name} = {index!r}: {owner} 0..{len(items) - 1}.")
    return items[int(index)]


@dataclass(frozen=True)
class Stage:
    """One goal of an episode. Most episodes have one; a chain has several, each begun when the last is solved.

    Attributes:
        name: the benchmark's own name of the goal.
        instruction: the sentence given to the policy.
        max_steps: control steps allowed.
    """

    name: str
    instruction: str
    max_steps: int


@dataclass(frozen=True)
class TaskSpec:
    """Names one task of one suite.

    Attributes:
        suite: benchmark suite, e.g. `libero_object`.
        task_id: index within the suite, from 0.
        name: the benchmark's own name of the task.
        instruction: the sentence given to the policy; of a task with several stages, a description.
        max_steps: control steps allowed per episode, settling excluded; of several stages, all together.
    """

    suite: str
    task_id: int
    name: str
    instruction: str
    max_steps: int

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of an episode in which the task itself is the only goal."""
        return (Stage(self.name, self.instruction, self.max_steps),)


class Env(Protocol):
    """One task in a simulator. Pictures are rendered only when asked for, so they cost nothing until somebody looks."""

    @property
    def task(self) -> TaskSpec:
        """The task being simulated."""
        ...

    @property
    def embodiment(self) -> Embodiment:
        """The robot, and its cameras as they are."""
        ...

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the running episode, in order."""
        ...

    @property
    def stage_index(self) -> int:
        """Number of the present stage, from 0."""
        ...

    def reset(self, start: Start) -> None:
        """Start an episode in its first stage and let the scene settle.

        Raises:
            ConfigError: there is no such start.
            SimulatorError: the simulator broke.
        """
        ...

    def observe(self) -> Observation:
        """Render every camera and return what a policy sees now, with the instruction of the present stage."""
        ...

    def frame(self, camera: str) -> NDArray[np.uint8]:
        """Render one camera of the embodiment: uint8 `[H, W, 3]`, RGB, upright."""
        ...

    def state(self) -> NDArray[np.float32]:
        """Return the robot's state vector `[S]` without rendering."""
        ...

    def step(self, action: NDArray[np.float32]) -> bool:
        """Execute one action `[action_dim]` in the environment's convention; return whether it solved the stage.

        When it did, the next stage begins, if there is one.

        Raises:
            ConfigError: the action has another shape or is not finite.
            SimulatorError: the simulator broke.
        """
        ...

    def versions(self) -> Mapping[str, str]:
        """Return the versions that decide what an episode looks like and how it ends, e.g. `mujoco`, `gl_renderer`."""
        ...

    def close(self) -> None:
        """Release the simulator and its GL context."""
        ...


@dataclass(frozen=True)
class Suite(ABC):
    """A benchmark suite. Nothing but `make_env` starts a simulator.

    Attributes:
        name: as on the command line.
        protocol: the rules episodes are played under, one of `protocols`; empty if there is only one set of rules.
        protocols: the rules there are, the usual ones first.
        embodiment: the robot of every task, with the cameras that policies get by default.
        num_stages: most stages an episode has. With one, the score is the success rate; with more, it is how many
            are solved in a row (on average, and the rate of at least 1, 2, ...).
        expert: where the scripted expert is: `module:function`, called with a `TaskSpec`; empty if there is none.
    """

    name: str
    protocol: str = ""
    protocols: ClassVar[tuple[str, ...]] = ()
    embodiment: ClassVar[Embodiment]
    num_stages: ClassVar[int] = 1
    expert: ClassVar[str] = ""

    @property
    def strategy(self) -> str:
        """How the protocol has chunks executed (`rdvla.execution.STRATEGIES`); empty leaves it to the caller."""
        return ""

    def prepare(self) -> None:  # noqa: B027
        """Settle what all workers of a run have to do alike; called once, before they start. Nothing by default."""

    @abstractmethod
    def tasks(self) -> Sequence[TaskSpec]:
        """Return the tasks in the benchmark's order.

        Raises:
            MissingExtraError: what lists them is not installed.
        """

    def select(self, task_ids: Sequence[int] | None) -> list[TaskSpec]:
        """Return the tasks with these ids, in that order, or all of them for None.

        Raises:
            ConfigError: an id that the suite does not have.
            MissingExtraError: what lists the tasks is not installed.
        """
        by_id = {task.task_id: task for task in self.tasks()}
        for task_id in task_ids or ():
            if task_id not in by_id:
                raise ConfigError(
                    f"suite '{self.name}' has no task {task_id}: its task ids are {min(by_id)}-{max(by_id)}."
                )
        return list(by_id.values()) if task_ids is None else [by_id[task_id] for task_id in task_ids]

    @property
    def demonstrated(self) -> Sequence[int] | None:
        """Ids of the tasks that are collected by default, because the expert solves them; None stands for all."""
        return None

    @abstractmethod
    def num_init_states(self, task_id: int) -> int:
        """Return how many bundled initial states a task has.

        Raises:
            ConfigError: no such task, or its states cannot be read.
        """

    @abstractmethod
    def make_env(self, task_id: int, *, camera_size: int | None = None) -> Env:
        """Start the environment of one task.

        Args:
            task_id: index in `tasks()`.
            camera_size: height and width of the images in pixels; None takes those of the embodiment.

        Raises:
            ConfigError: no such task.
            MissingExtraError: the simulator is not installed.
            SimulatorError: it does not start.
        """
