"""CALVIN's data files (`rdvla setup calvin`) and recordings of the published simulator, where they are here."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from rdvla.envs.calvin.assets import find_data
from rdvla.errors import ConfigError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "calvin"
GOLDEN = SHARED / "golden"


def _assets():
    if (SHARED / "assets").is_dir():
        return SHARED / "assets"
    try:
        return find_data()
    except ConfigError:
        return None


ASSETS = _assets()

needs_files = pytest.mark.skipif(ASSETS is None, reason="CALVIN's data files are not here: `rdvla setup calvin`")
needs_calvin = pytest.mark.skipif(
    ASSETS is None or importlib.util.find_spec("pybullet") is None,
    reason="CALVIN's data files or pybullet are not here: `rdvla setup calvin`",
)
needs_recordings = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="recordings of the published simulator are not on this machine"
)


def load_recording(name):
    with np.load(GOLDEN / "rollouts" / f"{name}.npz") as arrays:
        return dict(arrays), json.loads((GOLDEN / "rollouts" / f"{name}.json").read_text(encoding="utf-8"))
