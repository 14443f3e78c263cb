"""`rdvla dataset push`: a LeRobotDataset v3.0, checked first, with a card and the tag that LeRobot looks for."""

from pathlib import Path
from typing import Any

import yaml

from rdvla.data.checks import check_dataset
from rdvla.data.lerobot_meta import ACTION_KEY, INDEX_FEATURES, STATE_KEY, VERSION, DatasetInfo
from rdvla.data.lerobot_source import LeRobotSource
from rdvla.errors import DatasetError
from rdvla.files import files_below, require_new_folder
from rdvla.hub import DATASET, Repository, local, require_token, upload
from rdvla.publish.staging import CARD, read_card, staged

FOLDERS = ("meta", "data", "videos")
COLLECTED = "collect.json"


def push_dataset(source: str, to: Repository, licence: str | None, *, dry_run: Path | None = None) -> str | None:
    """Upload a dataset, or write the folder that would be uploaded.

    Args:
        source: its folder.
        to: where to; its tag should be `VERSION`.
        licence: an identifier of the hub's; None keeps that of the folder's README.md.
        dry_run: a new folder to write instead of uploading.

    Returns:
        The commit, None after a dry run.

    Raises:
        DatasetError: no such folder, no dataset, one that is not finished or cannot be used, no licence, or the hub
            refuses.
        StorageError: the folder exists, or the disk refuses.
    """
    if dry_run is None:
        require_token(to.kind)
    else:
        require_new_folder(dry_run)
    folder = local(source, DATASET)
    if folder is None:
        raise DatasetError(f"no folder '{source}'; name the one that 'rdvla collect' wrote.")
    info = DatasetInfo.load(folder)
    wrong = [finding for finding in check_dataset(folder, decode=False) if finding.severity == "error"]
    if wrong:
        raise DatasetError(f"'{folder}' cannot be used as it is ({wrong[0]}); see: rdvla dataset check {folder}")
    card = _card(folder, info, to.name, licence)
    files = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    with staged(files, card, dry_run) as draft:
        return None if dry_run is not None else upload(draft, to, message="Upload a dataset with rdvla dataset push")


def _files(folder: Path) -> list[Path]:
    inside = [path for name in FOLDERS for path in files_below(folder / name)]
    collected = folder / COLLECTED
    return sorted(inside) + ([collected] if collected.is_file() else [])


def _card(folder: Path, info: DatasetInfo, name: str, licence: str | None) -> str:
    """Return the folder's own README.md, or a new one, with the hub's metadata and the licence in front."""
    path = folder / CARD
    metadata, text = _parted(read_card(path, DatasetError)) if path.is_file() else ({}, _text(folder, info, name))
    licence = licence or metadata.get("license")
    if not licence:
        raise DatasetError("the card needs a licence: --license apache-2.0, cc-by-4.0, other, ...")
    tags = metadata.get("tags") or []
    metadata |= {"license": licence, "task_categories": ["robotics"]}
    metadata["tags"] = list(dict.fromkeys([*tags, "LeRobot", "rdvla"]))
    metadata["configs"] = [{"config_name": "default", "data_files": "data/*/*.parquet"}]
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n\n{text.strip()}\n"


def _parted(card: str) -> tuple[dict[str, Any], str]:
    if not card.startswith("---\n"):
        return {}, card
    front, _, text = card[4:].partition("\n---")
    try:
        metadata = yaml.safe_load(front)
    except yaml.YAMLError as error:
        raise DatasetError(f"the metadata of {CARD} is no YAML ({error}); mend or remove it.") from None
    return (metadata if isinstance(metadata, dict) else {}), text


def _text(folder: Path, info: DatasetInfo, name: str) -> str:
    source = LeRobotSource.load(folder, [])
    rows = [
        f"| `{key}` | {feature.dtype} | {'x'.join(map(str, feature.shape))} | {_names(key, feature.names)} |"
        for key, feature in info.features.items()
        if key not in INDEX_FEATURES
    ]
    sentences = [f"- {sentence}" for sentence in source.tasks.values()]
    size = f"{info.total_episodes} episodes, {info.total_frames} rows at {info.fps:g} per second"
    return "\n".join(
        [
            f"# {name.partition('/')[2]}\n",
            f"{size}, robot `{info.robot_type or 'unknown'}`, in the format LeRobotDataset {VERSION}.\n",
            "| feature | type | shape | entries |\n|---|---|---|---|",
            *rows,
            "\n## Sentences\n",
            *sentences,
        ]
    )


def _names(key: str, names: Any) -> str:
    flat = names.get("motors", names) if isinstance(names, dict) else names
    return ", ".join(map(str, flat)) if key in (STATE_KEY, ACTION_KEY) and isinstance(flat, list) else ""
