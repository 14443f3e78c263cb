"""Where a dataset's episodes lie in its video files, judged without decoding a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rdvla.data.findings import LATE, Finding
from rdvla.data.lerobot_source import LeRobotSource
from rdvla.data.lerobot_video import video_seconds
from rdvla.errors import DatasetError

SLACK = 0.5
"""Frames: places in a video are compared up to this."""


@dataclass(frozen=True, order=True)
class _Span:
    start: float
    end: float
    episode: int
    number: int


def about_videos(source: LeRobotSource, keys: Sequence[str]) -> list[Finding]:
    """Find video files that are missing or damaged, and episodes that do not lie in them one after the other.

    Args:
        source: the dataset.
        keys: camera features; those that are no videos are left out.
    """
    return [
        finding for key in keys if source.info.features[key].dtype == "video" for finding in _about_video(source, key)
    ]


def _about_video(source: LeRobotSource, key: str) -> list[Finding]:
    files: dict[Path, list[_Span]] = {}
    for number, row in enumerate(source.episodes):
        episode = int(row["episode_index"])
        try:
            path, start = source.video_of(number, key)
        except DatasetError as error:
            return [Finding("error", str(error), "", key, episode)]
        files.setdefault(path, []).append(_Span(start, start + row["length"] / source.info.fps, episode, number))
    return [finding for path, spans in files.items() for finding in _about_file(path, sorted(spans), key, source)]


def _about_file(path: Path, spans: Sequence[_Span], key: str, source: LeRobotSource) -> list[Finding]:
    try:
        length = video_seconds(path)
    except DatasetError as error:
        return [Finding("error", str(error), "", key, spans[0].episode)]
    name, slack = path.relative_to(source.root).as_posix(), SLACK / source.info.fps
    findings = []
    for before, after in pairwise(spans):
        if after.start < before.end - slack:
            what = (
                f"its pictures begin at {after.start:.3f} s of {name}, but those of episode {before.episode} end at "
                f"{before.end:.3f} s: one of them would show the other."
            )
            findings.append(Finding("error", what, "Copy meta/episodes and videos again.", key, after.episode))
    ends = [span.start for span in spans[1:]] + ([] if length is None else [length])
    for span, end in zip(spans, ends, strict=False):
        if end >= span.end - slack:  # else that is said of the file
            findings += _about_stamps(span, end, name, source)
    if length is None:
        return findings
    last = max(spans, key=lambda span: span.end)
    count = round(abs(length - last.end) * source.info.fps)
    frames = f"{count} frame{'' if count == 1 else 's'}"
    if length < last.end - slack:
        what = f"{name} ends {frames} before the episode does ({length:.3f} s of {last.end:.3f})."
        findings.append(Finding("error", what, "Copy the dataset again, all of its files.", key, last.episode))
    elif length > last.end + slack:
        what = f"{name} goes on for {frames} after the last episode in it: another recording's video?"
        findings.append(Finding("warning", what, "Look whether pictures and actions fit each other.", key))
    return findings


def _about_stamps(span: _Span, end: float, name: str, source: LeRobotSource) -> list[Finding]:
    """Find an episode whose timestamps leave its part of a video, which ends at `end` seconds of the file."""
    stamps = source.columns["timestamp"][source.rows(span.number), 0].astype(float)
    frame = 1 / source.info.fps
    last = end - span.start - frame
    if not len(stamps) or (stamps.min() >= -LATE * frame and stamps.max() <= last + LATE * frame):
        return []
    what = (
        f"timestamps go from {stamps.min():.3f} to {stamps.max():.3f} s, its pictures in {name} from 0 to {last:.3f} "
        "s: some would be another episode's, or none."
    )
    fix = "If the frames are evenly spaced, read them by number: data.timestamps=frame_index."
    return [Finding("error", what, fix, "timestamp", span.episode)]
