"""Collects demonstrations into a LeRobotDataset v3.0: in parallel, restartable after a kill, reproducible.

The dataset depends on the suites, tasks, number of episodes, seed and camera settings; not on the number of workers,
on interruptions or on the order in which attempts finish.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rdvla.collect.assembly import Storage, assemble
from rdvla.collect.card import dataset_card
from rdvla.collect.recording import Attempt
from rdvla.collect.schedule import Schedule, TaskPlan
from rdvla.collect.staging import Outcome, Staging
from rdvla.collect.worker import AttemptPlayer, ExpertFactory, WorkerSettings
from rdvla.data.lerobot_meta import INFO_PATH
from rdvla.embodiment import Embodiment
from rdvla.envs.base import Suite, TaskSpec
from rdvla.errors import ConfigError, SimulatorError
from rdvla.files import write_atomically
from rdvla.jobs.process import EPISODE_TIMEOUT_S, Broken, Played, Worker, wait_for_any

SUMMARY = "collect.json"

_TRIES_PER_ATTEMPT = 3
_BROKEN_IN_A_ROW = 3
_POLL_S = 1.0


@dataclass(frozen=True)
class CollectConfig:
    """What to collect.

    Attributes:
        output: folder of the dataset.
        suites: benchmark suites, e.g. `("libero_object", "libero_spatial")`.
        task_ids: tasks of every suite; None takes all.
        episodes: demonstrations per task.
        workers: processes.
        seed: decides placements and noise.
        render_every: control steps from one rendered image to the next; the rows between repeat it.
        camera_size: height and width of the images in pixels.
        storage: how images are stored, `video` or `image` (PNG).
        keep_staging: keep the staged demonstrations, so that the same folder can be extended later.
        episode_timeout_s: an attempt that takes longer than this many seconds is taken for hung and repeated.
        takeover: names the policy from which the demonstrators take over, and how; empty if they begin themselves.

    Raises:
        ConfigError: a value out of range.
    """

    output: Path
    suites: tuple[str, ...]
    task_ids: tuple[int, ...] | None = None
    episodes: int = 40
    workers: int = 2
    seed: int = 0
    render_every: int = 1
    camera_size: int = 256
    storage: Storage = "video"
    keep_staging: bool = False
    episode_timeout_s: float = EPISODE_TIMEOUT_S
    takeover: str = ""

    def __post_init__(self) -> None:
        if not self.suites:
            raise ConfigError("suite is empty; name at least one, e.g. --suite libero_object.")
        for name in ("episodes", "workers", "render_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, found {getattr(self, name)}.")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, found {self.seed}.")
        if not self.episode_timeout_s > 0:
            raise ConfigError(f"episode_timeout_s must be greater than 0, found {self.episode_timeout_s}.")
        if self.storage not in ("video", "image"):
            raise ConfigError(f"storage must be 'video' or 'image', found {self.storage!r}.")
        if self.camera_size < 1 or (self.storage == "video" and self.camera_size % 2):
            raise ConfigError(f"camera_size must be positive, and even for video, found {self.camera_size}.")

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that decide what an attempt records."""
        takeover = {"takeover": self.takeover} if self.takeover else {}
        return {"seed": self.seed, "render_every": self.render_every, "camera_size": self.camera_size, **takeover}


@dataclass(frozen=True)
class Status:
    """How far a collection is.

    Attributes:
        stage: `collecting` or `writing`.
        done: demonstrations recorded (or written), those of earlier runs included.
        total: demonstrations wanted.
        failures: attempts that were not solved.
        errors: times the simulator broke.
        now: what the workers are at.
    """

    stage: str
    done: int
    total: int
    failures: int = 0
    errors: int = 0
    now: str = ""


@dataclass(frozen=True)
class TaskSummary:
    """The result for one task.

    Attributes:
        suite: benchmark suite.
        task_id: index within the suite.
        name: the benchmark's name.
        episodes: demonstrations in the dataset.
        attempts: attempts that ended, solved or not.
        failures: attempts that were not solved; they are not in the dataset.
        errors: times the simulator broke; repeated, and not counted as failures.
        mean_steps: average length of the demonstrations in control steps.
        seconds_per_episode: average wall-clock time of a demonstration.
    """

    suite: str
    task_id: int
    name: str
    episodes: int
    attempts: int
    failures: int
    errors: int
    mean_steps: float
    seconds_per_episode: float


@dataclass(frozen=True)
class CollectSummary:
    """The result of a collection; also written to `OUTPUT/collect.json` with the origin of every episode.

    Attributes:
        output: folder of the dataset.
        tasks: one entry per task.
        missing: demonstrations wanted but not obtained.
        seconds: wall-clock time of the last run.
    """

    output: Path
    tasks: tuple[TaskSummary, ...]
    missing: int
    seconds: float


def collect(
    config: CollectConfig,
    *,
    suites: Mapping[str, Suite],
    make_expert: ExpertFactory,
    on_status: Callable[[Status], None] = lambda _: None,
) -> CollectSummary:
    """Collect what `config` asks for, continuing where an interrupted run with the same settings was.

    Args:
        config: what to collect.
        suites: the suites it names; sent to the workers.
        make_expert: makes a task's demonstrator; importable by name.
        on_status: told about progress.

    Raises:
        ConfigError: unknown suite or task, a task without an expert, or the folder holds something else.
        DatasetError: a staged file is damaged.
        SimulatorError: the simulator broke again and again.
        StorageError: the disk refuses.
        WorkerError: a defect in an environment or an expert.
    """
    began = time.monotonic()
    specs = _specs(config, suites)
    robot = _robot([suites[name] for name in dict.fromkeys(config.suites)])
    for spec in specs:
        make_expert(spec)  # a task without an expert is an error now, not after an hour
    staging = Staging(config.output)
    if _is_complete(config, specs, staging):
        return _load_summary(config.output)
    with staging.locked():
        staging.bind(config.identity)
        schedule = Schedule(
            TaskPlan((s.suite, s.task_id), config.episodes, config.seed, staging.outcomes(s.suite, s.task_id))
            for s in specs
        )
        settings = WorkerSettings(
            config.output, suites, make_expert, camera_size=config.camera_size, render_every=config.render_every
        )
        make_player = partial(AttemptPlayer, settings)
        workers = [Worker[Attempt, Outcome](make_player) for _ in range(config.workers)]
        _Collection(staging, schedule, workers, config.episode_timeout_s, on_status).run()
        summary = _write(config, robot, specs, staging, schedule, on_status, began)
        if not config.keep_staging:
            staging.delete()
    return summary


class _Collection:
    """The loop that feeds the workers and notes what they reply."""

    def __init__(
        self,
        staging: Staging,
        schedule: Schedule,
        workers: Sequence[Worker[Attempt, Outcome]],
        timeout_s: float,
        on_status: Callable[[Status], None],
    ) -> None:
        self._staging = staging
        self._schedule = schedule
        self._workers = workers
        self._timeout_s = timeout_s
        self._on_status = on_status
        self._tries: Counter[Attempt] = Counter()
        self._broken_in_a_row = 0

    def run(self) -> None:
        """Play until every task has its demonstrations or was given up; end the workers in any case."""
        try:
            while busy := self._feed():
                self._report(busy)
                wait_for_any(busy, _POLL_S)
                for worker in busy:
                    self._listen(worker)
            self._report([])
            for worker in self._workers:
                worker.stop()
        finally:
            for worker in self._workers:
                worker.kill()

    def _feed(self) -> list[Worker[Attempt, Outcome]]:
        for worker in self._workers:
            if worker.job is None:
                held = [other.task for other in self._workers if other is not worker and other.task is not None]
                attempt = self._schedule.next(worker.task, held)
                if attempt is not None:
                    worker.send(attempt, attempt.task)
        return [worker for worker in self._workers if worker.job is not None]

    def _listen(self, worker: Worker[Attempt, Outcome]) -> None:
        attempt = worker.job
        assert attempt is not None
        match worker.receive(self._timeout_s):
            case Played(outcome):
                self._broken_in_a_row = 0
                self._schedule.plans[attempt.task].settle(attempt.number, outcome)
            case Broken(message):
                self._repeat(attempt, message)

    def _repeat(self, attempt: Attempt, message: str) -> None:
        plan = self._schedule.plans[attempt.task]
        self._staging.add_error(attempt, message)
        self._tries[attempt] += 1
        if self._tries[attempt] < _TRIES_PER_ATTEMPT:
            plan.put_back(attempt.number)
            return
        self._broken_in_a_row += 1
        if self._broken_in_a_row == _BROKEN_IN_A_ROW:
            raise SimulatorError(
                f"the simulator broke {_TRIES_PER_ATTEMPT} times in each of {_BROKEN_IN_A_ROW} attempts in a row, last "
                f"in {attempt.suite} task {attempt.task_id}: {message}"
            )
        self._staging.settle(attempt, "error", {"message": message})
        plan.settle(attempt.number, "error")

    def _report(self, busy: Sequence[Worker[Attempt, Outcome]]) -> None:
        plans = self._schedule.plans.values()
        playing = sorted({f"{worker.job.suite}/{worker.job.task_id}" for worker in busy if worker.job})
        self._on_status(
            Status(
                stage="collecting",
                done=sum(min(plan.count("solved"), plan.episodes) for plan in plans),
                total=sum(plan.episodes for plan in plans),
                failures=sum(plan.count("failed") for plan in plans),
                errors=sum(self._staging.count_errors(*plan.key) for plan in plans),
                now=" ".join(playing),
            )
        )


def _robot(suites: Sequence[Suite]) -> Embodiment:
    """Return the robot of all suites.

    Raises:
        ConfigError: they have different ones.
    """
    first, *others = suites
    for suite in others:
        if suite.embodiment != first.embodiment:
            raise ConfigError(f"a dataset holds one robot, but {first.name} and {suite.name} have different ones.")
    return first.embodiment


def _specs(config: CollectConfig, suites: Mapping[str, Suite]) -> list[TaskSpec]:
    """Return the tasks to collect, suite by suite."""
    chosen = []
    for suite in dict.fromkeys(config.suites):
        tasks = {task.task_id: task for task in suites[suite].tasks()}
        wanted = sorted(tasks) if config.task_ids is None else sorted(set(config.task_ids))
        for task_id in wanted:
            if task_id not in tasks:
                raise ConfigError(f"suite '{suite}' has no task {task_id}; it has {min(tasks)} to {max(tasks)}.")
            chosen.append(tasks[task_id])
    return chosen


def _is_complete(config: CollectConfig, specs: Sequence[TaskSpec], staging: Staging) -> bool:
    """Whether exactly this collection is in place already.

    Raises:
        ConfigError: another dataset is in place.
    """
    if staging.exists:
        return False
    if not (config.output / INFO_PATH).exists():
        if config.output.is_dir() and any(config.output.iterdir()):
            raise ConfigError(f"'{config.output}' is not empty and holds no dataset; choose another folder.")
        return False
    with suppress(OSError, ValueError, KeyError):
        found = json.loads((config.output / SUMMARY).read_text(encoding="utf-8"))
        if found["settings"] == _settings(config, specs):
            return True
    raise ConfigError(
        f"'{config.output}' holds another dataset, or this one with other settings; choose another folder or delete it "
        "(a collection made with --keep-staging can be extended with more episodes or tasks)."
    )


def _settings(config: CollectConfig, specs: Sequence[TaskSpec]) -> dict[str, Any]:
    tasks = [[spec.suite, spec.task_id] for spec in specs]
    return {"tasks": tasks, "episodes": config.episodes, "storage": config.storage, **config.identity}


def _write(
    config: CollectConfig,
    robot: Embodiment,
    specs: Sequence[TaskSpec],
    staging: Staging,
    schedule: Schedule,
    on_status: Callable[[Status], None],
    began: float,
) -> CollectSummary:
    attempts = [attempt for plan in schedule.plans.values() for attempt in plan.kept()]
    if not attempts:
        raise SimulatorError("no attempt was solved, so there is nothing to write; does the expert know these tasks?")
    episodes = assemble(
        staging,
        config.output,
        attempts,
        robot=robot,
        storage=config.storage,
        write_card=lambda rows: dataset_card(config.identity, rows),
        progress=lambda done, total: on_status(Status("writing", done, total)),
    )
    summary = CollectSummary(
        output=config.output,
        tasks=tuple(_summarise(spec, schedule, staging, episodes) for spec in specs),
        missing=sum(plan.episodes for plan in schedule.plans.values()) - len(attempts),
        seconds=time.monotonic() - began,
    )
    document = {
        "settings": _settings(config, specs),
        "seconds": summary.seconds,
        "missing": summary.missing,
        "tasks": [asdict(task) for task in summary.tasks],
        "episodes": episodes,
    }
    write_atomically(config.output / SUMMARY, (json.dumps(document, indent=1) + "\n").encode())
    return summary


def _summarise(spec: TaskSpec, schedule: Schedule, staging: Staging, episodes: Sequence[dict[str, Any]]) -> TaskSummary:
    key = (spec.suite, spec.task_id)
    plan = schedule.plans[key]
    own = [row for row in episodes if (row["suite"], row["task_id"]) == key]
    return TaskSummary(
        suite=spec.suite,
        task_id=spec.task_id,
        name=spec.name,
        episodes=len(own),
        attempts=plan.count("solved") + plan.count("failed"),
        failures=plan.count("failed"),
        errors=staging.count_errors(*key),
        mean_steps=_mean([row["length"] for row in own]),
        seconds_per_episode=_mean([row["seconds"] for row in own]),
    )


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 2) if values else 0.0


def _load_summary(output: Path) -> CollectSummary:
    found = json.loads((output / SUMMARY).read_text(encoding="utf-8"))
    return CollectSummary(
        output, tuple(TaskSummary(**task) for task in found["tasks"]), found["missing"], found["seconds"]
    )
