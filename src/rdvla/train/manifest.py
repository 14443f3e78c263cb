"""Checksums of a folder's files, so that a damaged checkpoint is known before it is used."""

import hashlib
import json
from pathlib import Path

from rdvla.files import write_json

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Record size and SHA-256 of every file below `folder` in its `manifest.json`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {str(path.relative_to(folder)): _entry(path) for path in files}
    write_json(folder / MANIFEST, {"files": entries})


def find_damage(folder: Path) -> str | None:
    """Return what is wrong with a folder that `write_manifest` has seen, or None."""
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in entries.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"] or _entry(path) != expected:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} or a file it lists cannot be read ({error})"
    return None


def _entry(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
