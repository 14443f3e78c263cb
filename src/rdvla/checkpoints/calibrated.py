"""What `rdvla calibrate` adds to a checkpoint, written into what is already there: a stopping rule, an alarm."""

import re
from pathlib import Path

from rdvla.checkpoints.lerobot import DESCRIPTION, is_lerobot
from rdvla.checkpoints.native import CONFIG, is_native, read_config
from rdvla.errors import CheckpointError
from rdvla.files import write_atomically
from rdvla.policy import Alarm
from rdvla.stops import StopRule

CARD = "README.md"


def description_of(directory: Path) -> Path:
    """Return the folder with the `config.json` that a stopping rule and an alarm are written into.

    Raises:
        CheckpointError: another format, which has no place for them, or no checkpoint.
    """
    if is_lerobot(directory):
        return directory / DESCRIPTION
    if is_native(directory):
        return directory
    raise CheckpointError(
        f"'{directory}' is no folder with a checkpoint of ours, so there is no place for a default rule or an alarm; "
        "'rdvla convert' makes one."
    )


def store_default_stop(directory: Path, rule: StopRule, sentence: str) -> None:
    """Make `rule` the default of a checkpoint, in place: in its `config.json` and in its model card.

    Args:
        directory: a checkpoint of ours, or LeRobot's with the plugin's type.
        rule: where nobody says when to stop.
        sentence: for the card's section, which is replaced or added.

    Raises:
        CheckpointError: another format, which has no place for it, no checkpoint, or a card that cannot be read.
        StorageError: the disk refuses.
    """
    _store(directory, {"default_stop": rule}, "## When it stops", sentence)


def store_alarm(directory: Path, alarm: Alarm, sentence: str) -> None:
    """Give a checkpoint an alarm, in place; see `store_default_stop`."""
    _store(directory, {"alarm": alarm}, "## When it raises an alarm", sentence)


def _store(directory: Path, values: dict[str, object], heading: str, sentence: str) -> None:
    description = description_of(directory)
    config = read_config(description).model_copy(update=values)
    card = directory / CARD
    try:
        text = card.read_text(encoding="utf-8") if card.is_file() else f"# {directory.name}\n"
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read the model card '{card}' ({error}); mend it or move it away.") from None
    rest = re.sub(rf"(?ms)^{heading}$.*?(?=^## |\Z)", "", text).rstrip()
    write_atomically(description / CONFIG, config.to_json())
    write_atomically(card, f"{rest}\n\n{heading}\n\n{sentence}\n")
