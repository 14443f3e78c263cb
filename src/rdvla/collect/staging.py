"""The finished attempts of a collection, one file each, so that a killed run continues where it was.

Below `OUTPUT/.staging`: `settings.json`, `.lock`, `errors.jsonl`, and per task `00003.npz` (a demonstration),
`00004.failed.json` (not solved) or `00005.error.json` (given up, the simulator broke every time).
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from rdvla.collect.recording import Attempt, Demonstration
from rdvla.errors import ConfigError, DatasetError
from rdvla.files import append_line, complete_lines, cut_torn_line, owned_folder, write_atomically, write_json
from rdvla.jobs.pool import TaskKey

Ending = Literal["solved", "failed", "error"]
"""How an attempt ended: `solved` (recorded), `failed` (not solved), `error` (the simulator broke)."""

_SUFFIXES: dict[Ending, str] = {"solved": ".npz", "failed": ".failed.json", "error": ".error.json"}


def differing(before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Return the settings that are not the same; one that is None has its default, if there is one."""

    def value(settings: Mapping[str, Any], key: str) -> Any:
        given = settings.get(key)
        return defaults.get(key) if given is None else given

    return [key for key in {**before, **now} if value(before, key) != value(now, key)]


class Staging:
    """The staging folder of one collection. Only the driver of a collection writes to it.

    Attributes:
        folder: where it is.
        errors: how often the simulator broke, by task, restarts of the collection included; known inside `locked`.
    """

    def __init__(self, output: Path) -> None:
        self.folder = output / ".staging"
        self.errors: Counter[TaskKey] = Counter()
        self._discarded = output / ".staging.discarded"

    @property
    def exists(self) -> bool:
        """Whether a collection was begun here and not yet cleaned up."""
        return self.folder.is_dir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from collecting into the same folder; the lock ends with the process.

        Where nothing was settled, e.g. because a policy cannot be loaded, nothing is left.

        Raises:
            ConfigError: another process is at it.
            StorageError: the folder cannot be created.
        """
        busy = f"another `rdvla collect` is writing to '{self.folder.parent}'; wait for it, or choose another folder."
        with owned_folder(self.folder, busy=busy):
            try:
                self.errors = Counter(self._read_errors())
                yield
            finally:
                if self.exists and not any(self.folder.glob("*/task_*/*")):
                    self.delete()
                    with suppress(OSError):  # something else is in it
                        self.folder.parent.rmdir()

    def bind(self, settings: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        """Note the settings that decide what is recorded, or compare them with those of the run being continued.

        Args:
            settings: by name.
            defaults: what None stands for, by name.

        Raises:
            ConfigError: the run being continued was started with other settings.
        """
        path = self.folder / "settings.json"
        if not path.exists():
            write_json(path, settings)
            return
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ConfigError(f"'{path}' is damaged; choose another folder, or remove this collection.") from None
        for key in differing(before, settings, defaults or {}):
            raise ConfigError(
                f"'{self.folder.parent}' holds a collection with {key} = {before.get(key)!r}, now it is "
                f"{settings.get(key)!r}; repeat the first command, or choose another folder."
            )

    def endings(self, suite: str, task_id: int) -> dict[int, Ending]:
        """Return attempt number -> how it ended, for everything that has been settled."""
        found: dict[int, Ending] = {}
        for ending, suffix in _SUFFIXES.items():
            for path in self._task(suite, task_id).glob(f"[0-9]*{suffix}"):
                found[int(path.name.removesuffix(suffix))] = ending
        return found

    def forget_errors(self) -> None:
        """Have attempts played again that an earlier run gave up because the simulator broke."""
        for path in self.folder.glob(f"*/task_*/*{_SUFFIXES['error']}"):
            path.unlink()

    def keep(self, demonstration: Demonstration) -> None:
        """Store a demonstration.

        Raises:
            StorageError: the disk refuses; nothing half-written remains.
        """
        write_atomically(self._path(demonstration.attempt, "solved"), demonstration.to_bytes())

    def settle(self, attempt: Attempt, ending: Ending, details: Mapping[str, Any]) -> None:
        """Store that an attempt gave no demonstration.

        Raises:
            StorageError: the disk refuses.
        """
        write_json(self._path(attempt, ending), dict(details))

    def load(self, attempt: Attempt) -> Demonstration:
        """Return a stored demonstration.

        Raises:
            DatasetError: it is damaged.
        """
        path = self._path(attempt, "solved")
        return Demonstration.from_bytes(path.read_bytes(), str(path))

    def versions(self, suite: str) -> Mapping[str, str] | None:
        """Return what a stored demonstration of `suite` was recorded with; None if there is none.

        Raises:
            DatasetError: it is damaged.
        """
        path = next((self.folder / suite).glob(f"task_*/[0-9]*{_SUFFIXES['solved']}"), None)
        return None if path is None else Demonstration.from_bytes(path.read_bytes(), str(path)).versions

    def add_error(self, attempt: Attempt, message: str) -> None:
        """Append a broken simulation to `errors.jsonl`."""
        line = {"suite": attempt.suite, "task_id": attempt.task_id, "attempt": attempt.number, "message": message}
        append_line(self.folder / "errors.jsonl", json.dumps(line))
        self.errors[attempt.task] += 1

    def _read_errors(self) -> Iterator[TaskKey]:
        """Yield the task of every line of `errors.jsonl`, after removing what a kill cut short."""
        path = self.folder / "errors.jsonl"
        if not path.exists():
            return
        cut_torn_line(path)
        for number, line in enumerate(complete_lines(path), start=1):
            try:
                values = json.loads(line)
                yield (values["suite"], values["task_id"])
            except (ValueError, KeyError, TypeError):
                raise DatasetError(f"{path}:{number} is damaged; remove the line and repeat the command.") from None

    def delete(self) -> None:
        """Remove everything; a kill meanwhile leaves all of it or, out of the way, a rest that goes next time."""
        shutil.rmtree(self._discarded, ignore_errors=True)
        self.folder.rename(self._discarded)
        shutil.rmtree(self._discarded)

    def _task(self, suite: str, task_id: int) -> Path:
        return self.folder / suite / f"task_{task_id:02d}"

    def _path(self, attempt: Attempt, ending: Ending) -> Path:
        return self._task(attempt.suite, attempt.task_id) / f"{attempt.number:05d}{_SUFFIXES[ending]}"
