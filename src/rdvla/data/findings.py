"""What can be wrong with a dataset's rows, found with episode and frame; plain arrays in, findings out.

Errors are what nobody can train on; warnings and notes are for a person to judge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rdvla.data.lerobot_meta import FRESH_KEY

Severity = Literal["error", "warning", "note"]

FAR = 50.0
"""A value further from the median than this many times the middle half of its entry is called absurd."""
LATE = 0.25
"""Frames: a timestamp further than this from its frame's time belongs to no frame."""


@dataclass(frozen=True)
class Finding:
    """Something about a dataset.

    Attributes:
        severity: `error` (it cannot be used so), `warning` (it may be meant, look at it), `note`.
        what: a sentence.
        fix: what to do about it; empty if nothing has to be done.
        feature: key of the feature, if it is about one.
        episode: `episode_index`, if it is about one.
        frame: `frame_index` in the episode, if it is about one.
    """

    severity: Severity
    what: str
    fix: str = ""
    feature: str | None = None
    episode: int | None = None
    frame: int | None = None

    def __str__(self) -> str:
        """Return severity, place, sentence and fix."""
        place = ", ".join(
            f"{name} {value}"
            for name, value in (("feature", self.feature), ("episode", self.episode), ("frame", self.frame))
            if value is not None
        )
        return f"{self.message}" if not place else f"{place}: {self.message}"

    @property
    def message(self) -> str:
        """Return the sentence and what to do."""
        return f"{self.what} {self.fix}".strip()

    def document(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Rows:
    """A dataset's rows, episode by episode.

    Attributes:
        columns: feature -> `[N, D]`, the index columns among them.
        episode_start: int64 `[E + 1]`, first row of each episode, and N.
        episode_index: the episodes' own numbers, E of them.
        tasks: task index -> sentence.
        fps: frames per second.
    """

    columns: Mapping[str, NDArray[Any]]
    episode_start: NDArray[np.int64]
    episode_index: Sequence[int]
    tasks: Mapping[int, Any]
    fps: float

    def place(self, row: int) -> tuple[int, int]:
        """Return `episode_index` and frame of a row."""
        number = int(np.searchsorted(self.episode_start, row, side="right")) - 1
        return int(self.episode_index[number]), int(row - self.episode_start[number])


def about_episodes(rows: Rows) -> list[Finding]:
    """Find episodes without a row, or without a row that has pictures of its own."""
    empty = np.flatnonzero(np.diff(rows.episode_start) < 1)
    findings = [
        Finding("error", "the episode has no frame.", "Remove it from the dataset.", episode=rows.episode_index[number])
        for number in empty.tolist()
    ]
    if FRESH_KEY not in rows.columns or len(empty) or not len(rows.episode_index):
        return findings
    fresh = np.add.reduceat(rows.columns[FRESH_KEY][:, 0].astype(np.int64), rows.episode_start[:-1])
    if not fresh.any():
        what = "no row has pictures of its own: the column is false everywhere, so there is nothing to learn from."
        return [Finding("error", what, "Correct the column, or remove it if pictures belong to every row.", FRESH_KEY)]
    what = "no row of the episode has pictures of its own, so nothing is learned from it."
    return [
        Finding("warning", what, "Correct the column, or remove the episode.", FRESH_KEY, rows.episode_index[number])
        for number in np.flatnonzero(fresh == 0).tolist()
    ]


def about_numbers(rows: Rows, keys: Sequence[str]) -> list[Finding]:
    """Find values that are not finite, by feature and entry."""
    findings = []
    for key in keys:
        with np.errstate(over="ignore"):
            values = rows.columns[key].astype(np.float32)  # as every policy sees it
        bad_N, bad_D = np.nonzero(~np.isfinite(values))
        for entry in np.unique(bad_D):
            where = bad_N[bad_D == entry]
            episode, frame = rows.place(int(where[0]))
            found, count = rows.columns[key][where[0], entry], len(where)
            more = f" (and {count - 1} more rows)" if count > 1 else ""
            large = ", more than float32 holds" if np.isfinite(found) else ""
            what = f"entry {entry} is {found}{large}{more}."
            findings.append(Finding("error", what, "Remove or repair the episode.", key, episode, frame))
    return findings


def about_jumps(rows: Rows, keys: Sequence[str]) -> list[Finding]:
    """Find absurd values, by feature and entry, in features whose values are all finite."""
    return [finding for key in keys for finding in _absurd(rows, key)]


def _absurd(rows: Rows, key: str) -> list[Finding]:
    values = rows.columns[key].astype(np.float64)
    if not len(values) or not (np.abs(values) <= np.finfo(np.float32).max).all():
        return []
    first, low, middle, high, last = np.quantile(values, [0.01, 0.25, 0.5, 0.75, 0.99], axis=0)
    still = low == high  # of a command that is mostly 0, the outer percentiles say how far it goes
    low, high = np.where(still, first, low), np.where(still, last, high)
    span = high - low
    findings = []
    for entry in np.flatnonzero(span > 0):
        far = np.abs(values[:, entry] - middle[entry])
        worst = int(far.argmax())
        if far[worst] > FAR * span[entry]:
            episode, frame = rows.place(worst)
            which = "98 % of its values lie" if still[entry] else "the middle half of its values lies"
            what = f"entry {entry} is {values[worst, entry]:.6g}, where {which} in {low[entry]:.4g}..{high[entry]:.4g}."
            findings.append(
                Finding("warning", what, "A sensor that slipped? Look at the episode.", key, episode, frame)
            )
    return findings


def about_sentences(rows: Rows) -> list[Finding]:
    """Find rows whose task has no sentence."""
    task_index = rows.columns["task_index"][:, 0]
    findings = []
    for index in np.unique(task_index):
        if int(index) not in rows.tasks:
            continue  # said by who reads the tables
        sentence = rows.tasks[int(index)]
        if not isinstance(sentence, str) or not sentence.strip():
            episode, frame = rows.place(int(np.argmax(task_index == index)))
            what = f"task {index} has no sentence ({sentence!r}), so nobody could ask a policy for it."
            findings.append(Finding("error", what, "Write one in meta/tasks.parquet.", None, episode, frame))
    return findings


def about_timestamps(rows: Rows) -> list[Finding]:
    """Find episodes whose timestamps are not those of their frames, `frame_index / fps`."""
    stamps = rows.columns["timestamp"][:, 0].astype(np.float64)
    findings = []
    for number, (start, stop) in enumerate(zip(rows.episode_start, rows.episode_start[1:], strict=False)):
        if stop <= start:
            continue
        off = stamps[start:stop] * rows.fps - np.arange(stop - start)
        if np.abs(off).max() <= LATE:
            continue
        frame = int(np.abs(off).argmax())
        steady = np.ptp(off) <= LATE
        kind = f"all {off[0] / rows.fps:.3f} s late" if steady else f"up to {off[frame] / rows.fps:.3f} s off"
        what = f"timestamps are {kind}: they are not frame_index / {rows.fps:g}. A video is read at the stored times."
        fix = "If they are a clock's and the frames evenly spaced, read these by number: data.timestamps=frame_index."
        findings.append(Finding("warning", what, fix, "timestamp", int(rows.episode_index[number]), frame))
    return findings


def first_error(findings: Sequence[Finding]) -> Finding | None:
    """Return the first finding that nobody can train on."""
    return next((finding for finding in findings if finding.severity == "error"), None)
