"""Runs an evaluation: episodes on a pool of workers, every result on disk at once, continued after a kill.

The folder of an evaluation holds `run.json` (settings, command, tasks), `policy.json` (what the policy says about
itself), `episodes.jsonl` (one line per episode), `summary.json` (rates with intervals) and `videos/`.
"""

import json
import logging
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rdvla.envs.base import InitState, Seed, Suite
from rdvla.errors import ConfigError, RecordError
from rdvla.eval.player import EpisodePlayer, EpisodeRecipe, EpisodeResult, PolicyFactory, versions
from rdvla.eval.protocol import DRIVEN, EvalConfig, Job, plan
from rdvla.eval.records import RUN_FILE, AnyRecord, EpisodeLog, EpisodeRecord, ErrorRecord, Key, latest
from rdvla.eval.summary import summarise
from rdvla.files import write_atomically, write_json
from rdvla.jobs.driver import drive
from rdvla.jobs.pool import EPISODE_TIMEOUT_S, Pool, TaskKey
from rdvla.jobs.process import ProcessPool

_log = logging.getLogger(__name__)

SCHEMA = 1
"""Version of `run.json`."""

POLICY_FILE, SUMMARY_FILE = "policy.json", "summary.json"

OnRecord = Callable[[AnyRecord, int, int], None]


@dataclass(frozen=True)
class Resources:
    """With what an evaluation is run; none of it changes the results.

    Attributes:
        workers: how many, at least 1.
        pool: where workers come from.
        episode_timeout_s: an episode that takes longer than this many seconds is taken for hung and repeated.
        command: the command line, for the report.
    """

    workers: int = 1
    pool: Pool = field(default_factory=ProcessPool)
    episode_timeout_s: float = EPISODE_TIMEOUT_S
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers must be at least 1, found {self.workers}.")
        if not self.episode_timeout_s > 0:
            raise ConfigError(f"episode_timeout_s must be greater than 0, found {self.episode_timeout_s}.")


def evaluate(
    config: EvalConfig,
    *,
    suites: Mapping[str, Suite],
    policy_factory: PolicyFactory,
    output: Path,
    resources: Resources | None = None,
    on_record: OnRecord = lambda record, done, total: None,
) -> list[AnyRecord]:
    """Play every episode of `config` that `output` does not hold yet, and summarise all of them.

    Args:
        config: the evaluation.
        suites: the suites it names; sent to the workers.
        policy_factory: builds the policy in a worker; importable by name (or a partial of such a function).
        output: the evaluation's folder. A folder with a part of the same evaluation is continued; episodes that
            were recorded as errors are tried again.
        resources: processes, timeout, command line.
        on_record: called after every episode with its record, the number of episodes done and their total.

    Returns:
        The records of all episodes, old and new, in the order of the plan.

    Raises:
        ConfigError: a wrong setting, or `output` holds an evaluation with other settings.
        RecordError: the log in `output` is damaged, or of another evaluation.
        SimulatorError: the simulator does not work at all.
        WorkerError: a defect in the policy or the environment. Errors of `rdvla.errors` are raised as they are.
    """
    resources = resources or Resources()
    jobs = plan(config, suites)
    position = {job.key: number for number, job in enumerate(jobs)}
    with EpisodeLog(output) as log:
        _claim_folder(output, config, jobs, resources.command, log.records)
        _require_planned(output, log.records, position)
        done: dict[Key, AnyRecord] = {r.key: r for r in log.records if r.kind == "episode"}
        todo = [job for job in jobs if job.key not in done]
        work = _Evaluation(output, log, todo, config.policy_digest, total=len(jobs), on_record=on_record)
        make_player = partial(EpisodePlayer, EpisodeRecipe(policy_factory, suites))
        try:
            for name in dict.fromkeys(job.task.suite for job in todo):
                suites[name].prepare()
            drive(work, resources.pool, make_player, workers=resources.workers, timeout_s=resources.episode_timeout_s)
        finally:
            records = latest([*log.records, *work.records])
            records.sort(key=lambda record: position[record.key])
            if records:
                write_json(output / SUMMARY_FILE, summarise(records))
            else:  # the policy could not be loaded, for instance: the folder goes with it
                (output / RUN_FILE).unlink(missing_ok=True)
    return records


class _Evaluation:
    """The episodes still to play, task by task, and the log of those that were."""

    def __init__(
        self, output: Path, log: EpisodeLog, todo: Sequence[Job], policy_digest: str, *, total: int, on_record: OnRecord
    ) -> None:
        self._output, self._log, self._policy_digest, self._on_record = output, log, policy_digest, on_record
        self._queues: dict[TaskKey, deque[Job]] = {}
        for job in todo:
            self._queues.setdefault(job.task_key, deque()).append(job)
        self._total, self._done = total, total - len(todo)
        self._policy_written = False
        self._before: dict[str, Mapping[str, str]] = {
            record.suite: record.versions for record in log.records if record.kind == "episode"
        }
        self._warned: set[str] = set()
        self.records: list[AnyRecord] = []

    def waiting(self) -> Mapping[TaskKey, int]:
        return {task: len(queue) for task, queue in self._queues.items()}

    def take(self, task: TaskKey) -> Job:
        return self._queues[task].popleft()

    def put_back(self, job: Job, message: str) -> None:
        self._queues[job.task_key].appendleft(job)

    def finish(self, job: Job, result: EpisodeResult, attempt: int) -> None:
        if not self._policy_written:
            write_json(self._output / POLICY_FILE, result.policy)
            self._policy_written = True
        video = self._keep(result.film, f"videos/{file_name(job)}.mp4")
        trace = self._keep(result.trace, f"traces/{file_name(job)}.npz")
        identity = self._identity(job, attempt, result.versions)
        self._compare(job.task.suite, identity["versions"])
        self._record(EpisodeRecord(**identity | vars(result.outcome), video=video, trace=trace))

    def _keep(self, content: bytes | None, name: str) -> str | None:
        if content is None:
            return None
        write_atomically(self._output / name, content)
        return name

    def _compare(self, suite: str, now: Mapping[str, str]) -> None:
        """Warn, once for a suite, of versions other than those that episodes before were played with."""
        before = self._before.setdefault(suite, now)
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if changed and suite not in self._warned:
            self._warned.add(suite)
            details = "; ".join(f"{name} was {before.get(name)}, is {now.get(name)}" for name in changed)
            _log.warning(
                "'%s' holds episodes of %s that were played otherwise (%s), so its rates mix both; choose another "
                "folder to keep them apart",
                *(self._output, suite, details),
            )

    def give_up(self, job: Job, message: str, attempts: int) -> None:
        self._record(ErrorRecord(**self._identity(job, attempts, versions()), error=message))

    def show(self, playing: Sequence[Job]) -> None:
        """Nothing: every record is shown when it is there."""

    def _identity(self, job: Job, attempts: int, versions: Mapping[str, str]) -> dict[str, Any]:
        stop = job.rule.stop
        checkpoint = {"checkpoint": self._policy_digest} if self._policy_digest else {}
        start = job.start
        return {
            "init_state": start.index if isinstance(start, InitState) else None,
            "placement_seed": start.value if isinstance(start, Seed) else None,
            "suite": job.task.suite,
            "task": job.task.name,
            "task_id": job.task.task_id,
            "instruction": job.task.instruction,
            "protocol": job.protocol,
            "seed": job.run_seed,
            "episode_seed": job.seed,
            "rule": job.rule.label,
            "depth": None if stop is None else stop.depth,
            **{name: getattr(job.rule, name) for name in DRIVEN},
            "attempts": attempts,
            "versions": dict(versions) | checkpoint,
        }

    def _record(self, record: AnyRecord) -> None:
        self._log.append(record)
        self.records.append(record)
        self._done += 1
        self._on_record(record, self._done, self._total)


def file_name(job: Job) -> str:
    """Return the name of a job's files without their ending, unique within the evaluation."""
    start = f"init{job.start.index}" if isinstance(job.start, InitState) else f"seed{job.start.value}"
    parts = (job.task.suite, f"task{job.task.task_id}", start, job.rule.label, job.rule.execution)
    return re.sub(r"[^A-Za-z0-9.]+", "-", "_".join(parts).replace("(", "-")).strip("-")


def require_schema(path: Path, run: Mapping[str, Any]) -> None:
    """Make sure that this version reads what `run.json` holds.

    Raises:
        RecordError: another version wrote it.
    """
    if run.get("schema", SCHEMA) != SCHEMA:
        raise RecordError(
            f"'{path}' has schema {run['schema']!r}, this rdvla reads {SCHEMA}; read it with the version that wrote it."
        )


def _require_planned(output: Path, records: Sequence[EpisodeRecord | ErrorRecord], planned: Mapping[Key, int]) -> None:
    """Make sure that every episode that was played belongs to this evaluation.

    Raises:
        RecordError: one does not.
    """
    for record in records:
        if record.key not in planned:
            raise RecordError(
                f"'{output}' holds an episode that this evaluation does not have: {record.suite} task "
                f"{record.task_id}, {record.start}, {record.rule}, {record.execution}. Choose another folder."
            )


def _claim_folder(
    output: Path,
    config: EvalConfig,
    jobs: Sequence[Job],
    command: Sequence[str],
    records: Sequence[EpisodeRecord | ErrorRecord],
) -> None:
    """Write `run.json`, or, if episodes were played already (`records`), check that it has the same settings.

    Raises:
        ConfigError: it has others; the message names them.
        RecordError: it cannot be read.
    """
    path = output / RUN_FILE
    values = config.model_dump(mode="json")
    if not records:
        specs = {(job.task.suite, job.task.task_id): asdict(job.task) for job in jobs}
        content = {"schema": SCHEMA, "command": list(command), "config": values, "tasks": list(specs.values())}
        write_json(path, content)
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        require_schema(path, content)
        found = content["config"]
        found = EvalConfig.model_validate(found).model_dump(mode="json")  # an older one knew fewer settings
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise RecordError(f"'{path}' is missing or damaged; choose another folder, or remove this one.") from None
    if not found["policy_digest"]:  # older ones did not know what an address served
        found["policy_digest"] = values["policy_digest"]
    if not found["protocol"] and all(record.protocol in ("", values["protocol"]) for record in records):
        found["protocol"] = values["protocol"]  # older ones left the usual one unsaid
    changed = [name for name in values if found.get(name) != values[name]]
    if changed:
        details = "; ".join(f"{name} was {found.get(name)!r}, now {values[name]!r}" for name in changed)
        raise ConfigError(f"'{output}' holds an evaluation with other settings ({details}). Choose another folder.")
