"""Collects demonstrations into a LeRobotDataset v3.0: in parallel, restartable after a kill, reproducible.

The dataset depends on the suites, tasks, number of episodes, seed and camera settings, and on what simulates and draws
(`Env.versions`, the same for all of a suite); not on the number of workers, on interruptions or on the order in which
attempts finish.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rdvla.collect.assembly import Storage, assemble
from rdvla.collect.card import dataset_card
from rdvla.collect.plan import TaskPlan
from rdvla.collect.player import AttemptPlayer, AttemptRecipe, ExpertFactory
from rdvla.collect.recording import Attempt, Demonstration, Play
from rdvla.collect.staging import Ending, Staging, differing
from rdvla.data.lerobot_meta import INFO_PATH
from rdvla.embodiment import Embodiment
from rdvla.envs.base import Suite, TaskSpec
from rdvla.errors import ConfigError, SimulatorError
from rdvla.files import write_json
from rdvla.jobs.driver import drive
from rdvla.jobs.pool import EPISODE_TIMEOUT_S, Pool, TaskKey
from rdvla.jobs.process import ProcessPool

SUMMARY = "collect.json"
DRIVER = "gl_renderer"
"""The version that may differ: machines of one collection have graphics cards of their own."""


@dataclass(frozen=True)
class CollectConfig:
    """What to collect.

    Attributes:
        output: folder of the dataset.
        suites: benchmark suites, e.g. `("libero_object", "libero_spatial")`.
        task_ids: tasks of every suite; None takes those that the suite's expert solves.
        episodes: demonstrations per task; one of a chain has up to as many episodes as the chain has stages.
        workers: processes.
        seed: decides placements and noise.
        render_every: control steps from one rendered image to the next; the rows between repeat it.
        camera_size: height and width of the images in pixels; None takes those of the suites' robot.
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
    camera_size: int | None = None
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
        size = self.camera_size
        if size is not None and (size < 1 or (self.storage == "video" and size % 2)):
            raise ConfigError(f"camera_size must be positive, and even for video, found {size}.")

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that decide what an attempt records."""
        takeover = {"takeover": self.takeover} if self.takeover else {}
        return {"seed": self.seed, "render_every": self.render_every, "camera_size": self.camera_size, **takeover}


@dataclass(frozen=True)
class CollectStatus:
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
class TaskResult:
    """The result for one task.

    Attributes:
        suite: benchmark suite.
        task_id: index within the suite.
        name: the benchmark's name.
        episodes: episodes in the dataset, one per solved stage.
        attempts: attempts that ended, solved or not.
        failures: attempts of which no stage was solved; they are not in the dataset.
        errors: times the simulator broke; repeated, and not counted as failures.
        mean_steps: average length of an episode in control steps.
        seconds_per_episode: wall-clock time of the demonstrations by episode; one of a chain has several episodes.
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
    tasks: tuple[TaskResult, ...]
    missing: int
    seconds: float


def collect(
    config: CollectConfig,
    *,
    suites: Mapping[str, Suite],
    make_expert: ExpertFactory,
    pool: Pool | None = None,
    on_status: Callable[[CollectStatus], None] = lambda _: None,
) -> CollectSummary:
    """Collect what `config` asks for, continuing where an interrupted run with the same settings was.

    Args:
        config: what to collect.
        suites: the suites it names; sent to the workers.
        make_expert: makes a task's demonstrator; importable by name.
        pool: where workers come from; None takes processes of this machine.
        on_status: told about progress.

    Raises:
        ConfigError: unknown suite or task, a task without an expert, or the folder holds something else, also
            demonstrations of another simulator or renderer.
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
    defaults = {"camera_size": _only_size(robot)}
    if _is_complete(config, specs, staging, defaults):
        return _load_summary(config.output)
    with staging.locked():
        staging.bind(config.identity, defaults)
        _require_growth(config, specs)
        staging.forget_errors()
        plans = [
            TaskPlan((s.suite, s.task_id), config.episodes, config.seed, staging.endings(s.suite, s.task_id))
            for s in specs
        ]
        for name in dict.fromkeys(config.suites):
            suites[name].prepare()
        recipe = AttemptRecipe(suites, make_expert, camera_size=config.camera_size, render_every=config.render_every)
        drive(
            _Collection(plans, staging, on_status),
            pool or ProcessPool(),
            partial(AttemptPlayer, recipe),
            workers=config.workers,
            timeout_s=config.episode_timeout_s,
        )
        summary = _write(config, robot, dict(zip(specs, plans, strict=True)), staging, on_status, began)
        if not config.keep_staging:
            staging.delete()
    return summary


class _Collection:
    """The attempts still to make, and the staging folder for what comes of them."""

    def __init__(self, plans: Sequence[TaskPlan], staging: Staging, on_status: Callable[[CollectStatus], None]) -> None:
        self._plans = {plan.key: plan for plan in plans}
        self._staging, self._on_status = staging, on_status
        self._versions = {suite: staging.versions(suite) for suite, _ in self._plans}

    def waiting(self) -> Mapping[TaskKey, int]:
        return {task: plan.open for task, plan in self._plans.items()}

    def take(self, task: TaskKey) -> Attempt:
        return self._plans[task].take()

    def finish(self, job: Attempt, result: Play, attempt: int) -> None:
        if result.demonstration is None:
            self._settle(job, "failed", {"num_steps": result.num_steps, "seconds": result.seconds})
            return
        self._require_same_versions(result.demonstration)
        self._staging.keep(result.demonstration)
        self._plans[job.task].settle(job.number, "solved")

    def put_back(self, job: Attempt, message: str) -> None:
        self._staging.add_error(job, message)
        self._plans[job.task].put_back(job.number)

    def give_up(self, job: Attempt, message: str, attempts: int) -> None:
        self._staging.add_error(job, message)
        self._settle(job, "error", {"message": message})

    def show(self, playing: Sequence[Attempt]) -> None:
        plans = self._plans.values()
        self._on_status(
            CollectStatus(
                stage="collecting",
                done=sum(min(plan.count("solved"), plan.episodes) for plan in plans),
                total=sum(plan.episodes for plan in plans),
                failures=sum(plan.count("failed") for plan in plans),
                errors=self._staging.errors.total(),
                now=" ".join(sorted({f"{attempt.suite}/{attempt.task_id}" for attempt in playing})),
            )
        )

    def _require_same_versions(self, new: Demonstration) -> None:
        """Make sure that what decides pictures and episodes is as in the demonstrations of the suite that are there.

        Raises:
            ConfigError: it is not; the message says what differs.
        """
        suite = new.attempt.suite
        before = self._versions[suite] = self._versions[suite] or new.versions
        changed = [name for name in differing(before, new.versions, {}) if name != DRIVER]
        if changed:
            details = "; ".join(f"{name} was {before.get(name)!r}, is {new.versions.get(name)!r}" for name in changed)
            raise ConfigError(
                f"'{self._staging.folder.parent}' holds demonstrations of {suite} that were recorded otherwise "
                f"({details}), and nothing is mixed; go on with what they were recorded with, or choose another "
                "--output. What is there stays."
            )

    def _settle(self, attempt: Attempt, ending: Ending, details: Mapping[str, Any]) -> None:
        self._staging.settle(attempt, ending, details)
        self._plans[attempt.task].settle(attempt.number, ending)


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


def _only_size(robot: Embodiment) -> int | None:
    """Return height and width of all of a robot's pictures; None if they differ."""
    sizes = {side for size in robot.cameras.values() for side in size}
    return sizes.pop() if len(sizes) == 1 else None


def _specs(config: CollectConfig, suites: Mapping[str, Suite]) -> list[TaskSpec]:
    """Return the tasks to collect, suite by suite."""
    chosen = []
    wanted = None if config.task_ids is None else sorted(set(config.task_ids))
    for name in dict.fromkeys(config.suites):
        suite = suites[name]
        chosen += suite.select(suite.demonstrated if wanted is None else wanted)
    return chosen


def _is_complete(
    config: CollectConfig, specs: Sequence[TaskSpec], staging: Staging, defaults: Mapping[str, Any]
) -> bool:
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
    before = _settings_in(config.output)
    if before is not None and not differing(before, _settings(config, specs), defaults):
        return True
    raise ConfigError(
        f"'{config.output}' holds another dataset, or this one with other settings; choose another folder or delete it "
        "(a collection made with --keep-staging can be extended with more episodes or tasks)."
    )


def _require_growth(config: CollectConfig, specs: Sequence[TaskSpec]) -> None:
    """Make sure that a dataset which is in place would not lose episodes.

    Raises:
        ConfigError: it holds tasks, or demonstrations per task, that are not asked for now.
    """
    before = _settings_in(config.output) or {}
    now = _settings(config, specs)
    lost = [f"{suite} {task_id}" for suite, task_id in before.get("tasks", ()) if [suite, task_id] not in now["tasks"]]
    if lost or before.get("episodes", 0) > config.episodes:
        what = f"the tasks {', '.join(lost)}" if lost else f"{before['episodes']} demonstrations per task"
        raise ConfigError(
            f"'{config.output}' holds {what}, and fewer are asked for now, so episodes would be lost; ask for at least "
            "as many, or choose another folder."
        )


def _settings_in(output: Path) -> dict[str, Any] | None:
    """Return the settings of the dataset in `output`; None if it does not say."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return dict(json.loads((output / SUMMARY).read_text(encoding="utf-8"))["settings"])
    return None


def _settings(config: CollectConfig, specs: Sequence[TaskSpec]) -> dict[str, Any]:
    tasks = [[spec.suite, spec.task_id] for spec in specs]
    return {"tasks": tasks, "episodes": config.episodes, "storage": config.storage, **config.identity}


def _write(
    config: CollectConfig,
    robot: Embodiment,
    plans: Mapping[TaskSpec, TaskPlan],
    staging: Staging,
    on_status: Callable[[CollectStatus], None],
    began: float,
) -> CollectSummary:
    attempts = [attempt for plan in plans.values() for attempt in plan.kept()]
    if not attempts:
        raise SimulatorError("no attempt was solved, so there is nothing to write; does the expert know these tasks?")
    episodes = assemble(
        staging,
        config.output,
        attempts,
        robot=robot,
        storage=config.storage,
        write_card=lambda rows: dataset_card(config.identity, robot, rows),
        progress=lambda done, total: on_status(CollectStatus("writing", done, total)),
    )
    summary = CollectSummary(
        output=config.output,
        tasks=tuple(_summarise(spec, plan, staging, episodes) for spec, plan in plans.items()),
        missing=sum(plan.episodes for plan in plans.values()) - len(attempts),
        seconds=time.monotonic() - began,
    )
    document = {
        "settings": _settings(config, list(plans)),
        "seconds": summary.seconds,
        "missing": summary.missing,
        "tasks": [asdict(task) for task in summary.tasks],
        "episodes": episodes,
    }
    write_json(config.output / SUMMARY, document, indent=1)
    return summary


def _summarise(spec: TaskSpec, plan: TaskPlan, staging: Staging, episodes: Sequence[dict[str, Any]]) -> TaskResult:
    own = [row for row in episodes if (row["suite"], row["task_id"]) == plan.key]
    seconds = {row["attempt"]: row["seconds"] for row in own}  # every episode of a chain has those of the whole
    return TaskResult(
        suite=spec.suite,
        task_id=spec.task_id,
        name=spec.name,
        episodes=len(own),
        attempts=plan.count("solved") + plan.count("failed"),
        failures=plan.count("failed"),
        errors=staging.errors[plan.key],
        mean_steps=_mean([row["length"] for row in own]),
        seconds_per_episode=round(sum(seconds.values()) / len(own), 2) if own else 0.0,
    )


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 2) if values else 0.0


def _load_summary(output: Path) -> CollectSummary:
    found = json.loads((output / SUMMARY).read_text(encoding="utf-8"))
    return CollectSummary(
        output, tuple(TaskResult(**task) for task in found["tasks"]), found["missing"], found["seconds"]
    )
