"""Finds suites by name, importing only what the suite needs.

Our own families of suites are listed here; other distributions add theirs as entry points of the group `rdvla.envs`:
a function without arguments that returns `{name: Suite}`. Name the entry point as the suites' names begin.
"""

import dataclasses
from collections.abc import Mapping
from importlib.metadata import EntryPoint

from rdvla import plugins
from rdvla.envs.base import Env, Suite, TaskSpec
from rdvla.errors import ConfigError, MissingExtraError, suggest

GROUP = "rdvla.envs"

FAMILIES: Mapping[str, str] = {
    "toy": "rdvla.envs.toy:suites",
    "libero": "rdvla.envs.libero.suites:suites",
    "calvin": "rdvla.envs.calvin.suites:suites",
}
"""Family -> where its suites are."""


def find_suite(name: str, protocol: str = "") -> Suite:
    """Return a suite without starting a simulator.

    Args:
        name: e.g. `toy` or `libero_object`.
        protocol: the rules to play it under; empty takes its usual ones.

    Raises:
        ConfigError: an unknown suite or protocol (the message names the nearest one), or two families provide a name.
        MissingExtraError: what the suite needs is not installed.
    """
    known: dict[str, Suite] = {}
    owners: dict[str, EntryPoint] = {}
    lacking: MissingExtraError | None = None
    families = plugins.find(GROUP, FAMILIES).values()
    for family in sorted(families, key=lambda family: not name.startswith(family.name)):
        try:
            found = plugins.load(family, callable, "a function that returns suites by name")()
        except MissingExtraError as error:
            if name.lower().startswith(family.name):
                lacking = lacking or error
            continue
        for taken in found.keys() & known.keys():
            raise plugins.twice(taken, owners[taken], family)
        known |= found
        owners |= dict.fromkeys(found, family)
        if name in known:
            return _under(known[name], protocol)
    if lacking is not None:
        raise lacking
    raise ConfigError(f"unknown suite '{name}'.{suggest(name, known)}")


def _under(suite: Suite, protocol: str) -> Suite:
    if not protocol:
        return suite
    if protocol not in suite.protocols:
        known = suggest(protocol, suite.protocols) if suite.protocols else " It has one set of rules; drop the option."
        raise ConfigError(f"suite '{suite.name}' has no protocol '{protocol}'.{known}")
    return dataclasses.replace(suite, protocol=protocol)


def list_tasks(suite: str) -> list[TaskSpec]:
    """Return the tasks of `suite` without starting a simulator.

    Raises:
        ConfigError: an unknown suite.
        MissingExtraError: what the suite needs is not installed.
    """
    return list(find_suite(suite).tasks())


def num_init_states(suite: str, task_id: int) -> int:
    """Return how many bundled initial states a task has, without starting a simulator.

    Raises:
        ConfigError: unknown suite or task, or a task whose states cannot be read.
        MissingExtraError: what the suite needs is not installed.
    """
    return find_suite(suite).num_init_states(task_id)


def make_env(suite: str, task_id: int, *, camera_size: int | None = None, protocol: str = "") -> Env:
    """Start the environment of one task; see `Suite.make_env`.

    Raises:
        ConfigError: unknown suite, protocol or task.
        MissingExtraError: what the suite needs is not installed.
        SimulatorError: the simulator does not start.
    """
    return find_suite(suite, protocol).make_env(task_id, camera_size=camera_size)
