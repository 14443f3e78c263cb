"""Every error a user can cause, by kind.

The command line prints these as one message and exits with code 2; anything else is a defect of ours
and keeps its traceback. A message names the field, the offending value and the fix.
"""

import difflib
from collections.abc import Iterable
from importlib import metadata
from typing import Self

MOST_NAMES = 20
"""Names listed in one message."""


class RDVLAError(Exception):
    """Base of every error that `rdvla` raises on bad input."""


class ConfigError(RDVLAError):
    """A configuration file, override or argument is wrong."""


class ObservationError(RDVLAError):
    """An observation does not have the shape, dtype or values a policy needs."""


class CarryError(RDVLAError):
    """What an earlier decision left for this one is damaged, or another policy's."""


class CheckpointError(RDVLAError):
    """A checkpoint is missing, damaged or does not fit the model."""


class DatasetError(RDVLAError):
    """A dataset is missing, damaged or does not fit the policy."""


class RecordError(RDVLAError):
    """The records of an evaluation are missing or damaged."""


class TrainingError(RDVLAError):
    """Training cannot go on: the loss is not finite, or the run folder belongs to another configuration."""


class SimulatorError(RDVLAError):
    """The simulator could not be started, or broke while running."""


class StorageError(RDVLAError):
    """A file could not be written (disk full, no permission)."""


class ServeError(RDVLAError):
    """A remote policy could not be reached, refused a request or answered out of protocol."""


class MissingExtraError(RDVLAError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        """Name the `package` that is missing and the `extra` of rdvla that brings it; on a robot, rdvla-client does."""
        on_robot = extra == "client" and _is_installed("rdvla-client")
        source = "rdvla-client" if on_robot else f"'rdvla[{extra}]'"
        super().__init__(f"{package} is not installed. Install it with: pip install {source}")
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        return type(self), (self.package, self.extra)


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the known name nearest to `name`, or a list of known names. Case is ignored."""
    names = sorted(known)
    plain = {each.lower(): each for each in names}
    nearest = difflib.get_close_matches(name.lower(), plain, n=1, cutoff=0.5)
    if nearest:
        return f" Did you mean '{plain[nearest[0]]}'?"
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f" Known: {', '.join(names[:MOST_NAMES])}{more}."
