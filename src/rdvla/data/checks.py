"""`rdvla dataset check`: one pass over a LeRobotDataset, everything that is wrong or doubtful in it."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rdvla.data.conventions import about_actions
from rdvla.data.episodes import Progress
from rdvla.data.findings import (
    Finding,
    Severity,
    about_episodes,
    about_jumps,
    about_numbers,
    about_sentences,
    about_timestamps,
)
from rdvla.data.lerobot_meta import ACTION_KEY, INDEX_FEATURES, STATE_KEY, STATS_PATH, TEXT, DatasetInfo, Feature
from rdvla.data.lerobot_source import LeRobotSource
from rdvla.data.stats import NormStats, rarely_changing
from rdvla.data.video_checks import about_videos
from rdvla.errors import DatasetError
from rdvla.hub import DATASET, resolve

LEVELS = {"q01": 0.01, "q99": 0.99}
TOLERANCE = 0.01
"""A stored percentile is called wrong if it is further than this from the data's, in units of the range."""
WIDEST = 64
"""Entries of a feature that are looked at one by one; more are an array, not a state."""

TRAINED_ON = (STATE_KEY, ACTION_KEY)
"""Features that training takes unless it is told others."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


def check_dataset(root: Path | str, *, decode: bool = True, progress: Progress | None = None) -> list[Finding]:
    """Look through a dataset.

    Args:
        root: folder, or `owner/name[@revision]` on the Hugging Face hub.
        decode: decode every picture too.
        progress: called with (episodes done, episodes) while pictures are decoded.

    Returns:
        Errors first, then warnings, then notes.
    """
    try:
        folder = resolve(root, DATASET)
        info = DatasetInfo.load(folder)
        keys, absent = vector_keys(folder, info)
        source = LeRobotSource.read(folder, keys)
    except DatasetError as error:
        return [Finding("error", str(error))]
    rows = source.as_rows()
    findings = [
        *about_episodes(rows),
        *about_sentences(rows),
        *about_numbers(rows, keys),
        *about_jumps(rows, keys),
        *absent,
        *about_features(info),
    ]
    if any(info.features[key].dtype == "video" for key in info.cameras):
        findings += about_timestamps(rows)
    if not unusable(findings):
        if ACTION_KEY in keys:
            names = info.features[STATE_KEY].names if STATE_KEY in keys else None
            findings += about_actions(source.columns[ACTION_KEY].astype(np.float32), state_names=names)
        findings += [finding for key in keys for finding in about_statistics(folder, key, source)]
        videos = about_videos(source, info.cameras)
        broken = {finding.feature for finding in videos if finding.severity == "error"}
        findings += videos
        if decode:
            findings += about_pictures(source, [key for key in info.cameras if key not in broken], progress)
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def vector_keys(root: Path, info: DatasetInfo) -> tuple[list[str], list[Finding]]:
    """Return the numeric features that are looked through, and what is declared but absent.

    Those are state and action, and whatever else has up to `WIDEST` entries, without index columns.
    """
    known = {*INDEX_FEATURES, info.fresh_key}
    keys = [key for key, feature in info.features.items() if _is_vector(key, feature) and key not in known]
    there = LeRobotSource.column_names(root, info)
    what = "is declared in meta/info.json, but the data files have no such column."
    absent = [
        Finding("error" if key in TRAINED_ON else "warning", what, feature=key) for key in keys if key not in there
    ]
    return [key for key in keys if key in there], absent


def _is_vector(key: str, feature: Feature) -> bool:
    """Say whether a feature is a state, an action or the like: numbers, not an array of pixels."""
    return feature.is_number and (key in TRAINED_ON or 0 < int(np.prod(feature.shape)) <= WIDEST)


def about_features(info: DatasetInfo) -> list[Finding]:
    """Say which features are depth or no numbers, and whether there are a camera, a state and an action at all."""
    findings = [
        Finding("note", "is depth, which no policy here uses as a camera.", feature=key) for key in info.depth_maps
    ]
    if not info.cameras:
        findings.append(Finding("warning", "the dataset has no camera; a policy cannot be trained on it."))
    for key, setting in zip(TRAINED_ON, ("data.state", "data.action"), strict=True):
        if key not in info.features:
            what = f"there is no feature '{key}'; training has to be told which ones are ({setting})."
            findings.append(Finding("warning", what))
    for key, feature in info.features.items():
        needed = key in TRAINED_ON
        if feature.is_camera or feature.is_number or (feature.dtype in TEXT and not needed):
            continue
        what = f"meta/info.json says dtype '{feature.dtype}', which is no kind of number."
        fix = "Say there what the column holds, e.g. float32." if needed else "It is not looked into."
        findings.append(Finding("error" if needed else "warning", what, fix, key))
    return findings


def about_statistics(root: Path, key: str, source: LeRobotSource) -> list[Finding]:
    """Say which entries never or rarely change, and where `meta/stats.json` differs from the data."""
    values = source.columns[key].astype(np.float32)
    stats = NormStats.compute(values)
    findings = []
    if constant := np.flatnonzero(stats.min == stats.max).tolist():
        what = f"entries {constant} never change; a policy sees 0 there."
        findings.append(Finding("note", what, feature=key))
    if rare := np.flatnonzero(rarely_changing(values)).tolist():
        what = (
            f"entries {rare} change so rarely that their 1st and 99th percentile coincide; rdvla normalises them by "
            "their smallest and largest value."
        )
        findings.append(Finding("warning", what, feature=key))
    stored, problem = stored_statistics(root)
    if problem or len(source.info.features[key].shape) > 1:  # LeRobot pools statistics over all axes but the last
        return findings
    span = np.maximum(stats.max - stats.min, 1e-9)
    given = stored.get(key)
    exact = {name: np.quantile(values.astype(np.float64), level, axis=0) for name, level in LEVELS.items()}
    wrong = [
        name
        for name in LEVELS
        if isinstance(given, dict) and name in given and _differs(given[name], exact[name], TOLERANCE * span)
    ]
    if wrong:
        what = f"meta/stats.json: {' and '.join(wrong)} are not the data's percentiles, as in recorded or merged sets."
        findings.append(Finding("note", what, "rdvla computes its own; other programs may not.", feature=key))
    return findings


def stored_statistics(root: Path) -> tuple[dict[str, Any], str]:
    """Return `meta/stats.json`, or why it cannot be read (nothing of it is used, so that is no error)."""
    try:
        document = json.loads((root / STATS_PATH).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return {}, f"meta/stats.json cannot be read ({type(error).__name__}); rdvla computes statistics itself."
    if not isinstance(document, dict):
        return {}, "meta/stats.json is no mapping; rdvla computes statistics itself."
    return document, ""


def _differs(given: Any, exact: np.ndarray, tolerance: np.ndarray) -> bool:
    try:
        values = np.asarray(given, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        return True
    return values.shape != exact.shape or bool((np.abs(values - exact) > tolerance).any())


def about_pictures(source: LeRobotSource, cameras: Sequence[str], progress: Progress | None) -> list[Finding]:
    """Decode every picture of some cameras; one finding per camera and episode that fails or has another size."""
    findings = []
    for episode in range(len(source.episodes)):
        frames = np.flatnonzero(source.fresh[source.rows(episode)])
        number = int(source.episodes[episode]["episode_index"])
        for key in cameras:
            done, declared = 0, source.info.features[key].image_size
            sizes: set[tuple[int, ...]] = set()
            try:
                for picture in source.decode(episode, key, frames):
                    done += 1
                    sizes.add(picture.shape[:2])
            except DatasetError as error:
                frame = int(frames[min(done, len(frames) - 1)])
                findings.append(Finding("error", str(error), "", key, number, frame))
            if min(declared) > 0 and sizes - {declared}:
                found = ", ".join(f"{size[0]}x{size[1]}" for size in sorted(sizes))
                what = f"pictures are {found}, meta/info.json says {declared[0]}x{declared[1]}; training resizes each."
                findings.append(Finding("warning", what, "A camera that was turned or exchanged?", key, number))
        if progress is not None:
            progress(episode + 1, len(source.episodes))
    return findings


def unusable(findings: Sequence[Finding]) -> bool:
    """Say whether a dataset with these findings cannot be used as it is."""
    return any(finding.severity == "error" for finding in findings)


def verdict(findings: Sequence[Finding]) -> str:
    """Return how many of each, in words."""
    counts = Counter(finding.severity for finding in findings)
    words = [f"{counts[name]} {name}{'s' if counts[name] != 1 else ''}" for name in SEVERITIES if counts[name]]
    return ", ".join(words) or "fine"
