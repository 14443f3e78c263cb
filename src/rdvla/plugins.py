"""What installed packages add to ours, by name: stopping rules, backbones and suites are all found here.

A name has one owner. Where two provide the same one, nothing is dropped or replaced silently: it is an error that
names both.
"""

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from rdvla.errors import ConfigError


def find(group: str, ours: Mapping[str, str]) -> dict[str, EntryPoint]:
    """Return name -> where it is, ours first, without importing anything.

    Args:
        group: of entry points.
        ours: name -> `module:object` of what is built in.

    Raises:
        ConfigError: a name is provided twice.
    """
    found: dict[str, EntryPoint] = {}
    for entry in (*(EntryPoint(name, where, group) for name, where in ours.items()), *entry_points(group=group)):
        if entry.name in found:
            raise twice(entry.name, found[entry.name], entry)
        found[entry.name] = entry
    return found


def load(entry: EntryPoint, fits: Callable[[Any], bool], wanted: str) -> Any:
    """Import what an entry point names.

    Raises:
        ConfigError: it cannot be imported, or does not fit; the message says that it must be `wanted`.
    """
    try:
        found = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"entry point {_described(entry)} of {entry.group} cannot be imported ({error}); mend or uninstall it."
        ) from error
    if not fits(found):
        raise ConfigError(f"entry point {_described(entry)} of {entry.group} must be {wanted}, found {found!r:.60}.")
    return found


def twice(name: str, first: EntryPoint, second: EntryPoint) -> ConfigError:
    """Return the error that says who provides `name` twice."""
    return ConfigError(
        f"'{name}' of {second.group} is provided twice, by {_described(first)} and by {_described(second)}; "
        "uninstall one of them, or call it otherwise."
    )


def _described(entry: EntryPoint) -> str:
    return f"'{entry.value}' ({entry.dist.name if entry.dist is not None else 'rdvla'})"
