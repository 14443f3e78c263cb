"""The folder that is uploaded: links to what it is made of, or copies for a person to look at."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rdvla.errors import CheckpointError, DatasetError
from rdvla.files import replacing_folder, writing

CARD = "README.md"


def read_card(path: Path, error: type[CheckpointError | DatasetError]) -> str:
    """Return a README.md's text.

    Raises:
        CheckpointError, DatasetError: (`error`) it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"cannot read the card '{path}' ({cause}); mend it or move it away.") from None


@contextmanager
def staged(files: Mapping[str, Path], card: str, dry_run: Path | None) -> Iterator[Path]:
    """Yield a folder with `files` (name there -> where they are) and the card.

    Args:
        files: what to put there.
        card: becomes README.md.
        dry_run: a new folder for copies, which stays; None takes a temporary one with links.

    Raises:
        StorageError: the folder exists, or the disk refuses.
    """
    if dry_run is not None:
        with replacing_folder(dry_run) as draft:
            for name, source in files.items():
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, draft / name)
            (draft / CARD).write_text(card, encoding="utf-8")
        yield dry_run
        return
    with TemporaryDirectory(prefix="rdvla-push-") as temporary:
        folder = Path(temporary)
        with writing(folder):
            for name, source in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).symlink_to(source.resolve())
            (folder / CARD).write_text(card, encoding="utf-8")
        yield folder
