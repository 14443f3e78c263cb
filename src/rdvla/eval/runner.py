"""Runs an evaluation: episodes in worker processes, every result on disk at once, continued after a kill.

The folder of an evaluation holds `run.json` (settings, command, tasks), `policy.json` (what the policy says about
itself), `episodes.jsonl` (one line per episode), `summary.json` (rates with intervals) and `videos/`.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rdvla.envs.base import Suite
from rdvla.errors import ConfigError, RecordError, SimulatorError, StorageError
from rdvla.eval.protocol import EvalConfig, Job, plan
from rdvla.eval.records import EPISODES_FILE, EpisodeLog, EpisodeRecord, ErrorRecord, Key, latest
from rdvla.eval.schedule import Schedule, task_key
from rdvla.eval.summary import summarise
from rdvla.eval.worker import EpisodePlayer, Finished, PolicyFactory, Try, WorkerSettings, start_fields, versions
from rdvla.jobs.process import EPISODE_TIMEOUT_S, Broken, Played, Worker, wait_for_any

RUN_FILE, POLICY_FILE, SUMMARY_FILE = "run.json", "policy.json", "summary.json"

MAX_ATTEMPTS = 3
"""How often an episode is started before it is recorded as an error."""

MAX_ERRORS_IN_A_ROW = 3
"""Episodes lost one after the other before the evaluation gives up on the simulator."""

OnRecord = Callable[[EpisodeRecord | ErrorRecord, int, int], None]


@dataclass(frozen=True)
class Resources:
    """With what an evaluation is run; none of it changes the results.

    Attributes:
        workers: worker processes, at least 1.
        episode_timeout_s: an episode that takes longer than this many seconds is taken for hung and repeated.
        command: the command line, for the report.
    """

    workers: int = 1
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
) -> list[EpisodeRecord | ErrorRecord]:
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
        RecordError: the log in `output` is damaged.
        SimulatorError: the simulator does not work at all.
        WorkerError: a defect in the policy or the environment. Errors of `rdvla.errors` are raised as they are.
    """
    resources = resources or Resources()
    jobs = plan(config, suites)
    with EpisodeLog(output) as log:
        _claim_folder(output, config, jobs, resources.command, started=bool(log.records))
        done: dict[Key, EpisodeRecord | ErrorRecord] = {r.key: r for r in log.records if r.kind == "episode"}
        settings = WorkerSettings(policy_factory, suites, config.policy_digest, output)
        todo = [job for job in jobs if job.key not in done]
        run = _Run(log, settings, todo, resources, total=len(jobs), done=len(done), on_record=on_record)
        try:
            run.play_all()
        finally:
            records = latest([*log.records, *run.records])
            position = {job.key: number for number, job in enumerate(jobs)}
            records.sort(key=lambda record: position[record.key])
            if records:
                write_json(output / SUMMARY_FILE, summarise(records))
            else:
                _leave_nothing(output)
    return records


class _Run:
    """The loop that keeps the workers busy."""

    def __init__(
        self,
        log: EpisodeLog,
        settings: WorkerSettings,
        todo: Sequence[Job],
        resources: Resources,
        *,
        total: int,
        done: int,
        on_record: OnRecord,
    ) -> None:
        self._log, self._settings, self._resources = log, settings, resources
        self._schedule = Schedule(todo)
        make_player = partial(EpisodePlayer, settings)
        self._workers = [Worker[Try, Finished](make_player) for _ in range(min(resources.workers, len(todo)))]
        self._attempts: dict[Key, int] = {}
        self._total, self._done, self._on_record = total, done, on_record
        self._errors_in_a_row = 0
        self._policy_written = False
        self.records: list[EpisodeRecord | ErrorRecord] = []

    def play_all(self) -> None:
        """Play until nothing is left; end the workers in any case."""
        try:
            while busy := self._assign():
                wait_for_any(busy, timeout_s=1.0)
                for worker in busy:
                    self._listen(worker)
            for worker in self._workers:
                worker.stop()
        finally:
            for worker in self._workers:
                worker.kill()

    def _assign(self) -> list[Worker[Try, Finished]]:
        for worker in self._workers:
            if worker.job is None:
                held = {other.task for other in self._workers if other.job is not None and other.task is not None}
                job = self._schedule.next(worker.task, held)
                if job is not None:
                    attempt = self._attempts[job.key] = self._attempts.get(job.key, 0) + 1
                    worker.send(Try(job, attempt), task_key(job))
        return [worker for worker in self._workers if worker.job is not None]

    def _listen(self, worker: Worker[Try, Finished]) -> None:
        assert worker.job is not None
        job = worker.job.job
        match worker.receive(self._resources.episode_timeout_s):
            case None:
                return
            case Played(Finished(record, policy)):
                self._errors_in_a_row = 0
                if not self._policy_written:
                    write_json(self._settings.output / POLICY_FILE, policy)
                    self._policy_written = True
                self._record(record)
            case Broken(message):
                self._repeat(job, message)

    def _repeat(self, job: Job, message: str) -> None:
        attempts = self._attempts[job.key]
        if attempts < MAX_ATTEMPTS:
            self._schedule.put_back(job)
            return
        self._record(_error_record(job, message, attempts, self._settings.policy_digest))
        self._errors_in_a_row += 1
        if self._errors_in_a_row >= MAX_ERRORS_IN_A_ROW:
            raise SimulatorError(
                f"{MAX_ERRORS_IN_A_ROW} episodes in a row failed {MAX_ATTEMPTS} times each; the last one "
                f"({job.task.suite} task {job.task.task_id}, {job.start}): {message}"
            )

    def _record(self, record: EpisodeRecord | ErrorRecord) -> None:
        self._log.append(record)
        self.records.append(record)
        self._done += 1
        self._on_record(record, self._done, self._total)


def _leave_nothing(output: Path) -> None:
    """Remove the folder of an evaluation without an episode, whose policy could not be loaded for instance."""
    for name in (EPISODES_FILE, RUN_FILE):
        (output / name).unlink(missing_ok=True)
    with suppress(OSError):  # something else is in it
        output.rmdir()


def _error_record(job: Job, message: str, attempts: int, policy_digest: str) -> ErrorRecord:
    stop = job.rule.stop
    return ErrorRecord(
        suite=job.task.suite,
        task=job.task.name,
        task_id=job.task.task_id,
        instruction=job.task.instruction,
        **start_fields(job.start),
        protocol=job.protocol,
        seed=job.run_seed,
        episode_seed=job.seed,
        rule=job.rule.label,
        stop=stop,
        depth=stop.max_depth if stop is not None and stop.name == "fixed" else None,
        horizon=job.rule.horizon,
        attempts=attempts,
        versions=versions(policy_digest),
        error=message,
    )


def _claim_folder(
    output: Path, config: EvalConfig, jobs: Sequence[Job], command: Sequence[str], *, started: bool
) -> None:
    """Write `run.json`, or, if episodes were played already, check that it has the same settings.

    Raises:
        ConfigError: it has others; the message names them.
        RecordError: it cannot be read.
    """
    path = output / RUN_FILE
    values = config.model_dump(mode="json")
    if not started:
        specs = {(job.task.suite, job.task.task_id): asdict(job.task) for job in jobs}
        content = {"schema": 1, "command": list(command), "config": values, "tasks": list(specs.values())}
        write_json(path, content)
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["config"]
        found = EvalConfig.model_validate(found).model_dump(mode="json")  # an older one knew fewer settings
    except (OSError, ValueError, KeyError, TypeError):
        raise RecordError(f"'{path}' is missing or damaged; choose another folder, or remove this one.") from None
    changed = [name for name in values if found.get(name) != values[name]]
    if changed:
        details = "; ".join(f"{name} was {found.get(name)!r}, now {values[name]!r}" for name in changed)
        raise ConfigError(f"'{output}' holds an evaluation with other settings ({details}). Choose another folder.")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` so that the file is either whole or as before.

    Raises:
        StorageError: it cannot be written.
    """
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise StorageError(f"cannot write '{path}': {error.strerror}.") from None
