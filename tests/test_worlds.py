"""The versions that others bring: the lower bounds are those that are tried, and LeRobot's worlds lie within."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
NEEDED = [Requirement(text) for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]]


def pinned(name):
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
    pairs = (re.split("==", line) for line in lines if not line.startswith("#"))
    return {canonicalize_name(package): version for package, version in pairs}


def test_the_lowest_world_is_at_the_bounds():
    lowest = pinned("lowest")
    for need in NEEDED:
        bound = next(each.version for each in need.specifier if each.operator == ">=")
        found = lowest[canonicalize_name(need.name)]
        assert need.name == "torch" or found == bound or found.startswith(f"{bound}."), need


@pytest.mark.parametrize("name", ["lowest", "lerobot-0.4", "lerobot-0.6"])
def test_every_world_has_what_is_needed(name):
    world = pinned(name)
    for need in NEEDED:
        assert world[canonicalize_name(need.name)] in need.specifier, need
