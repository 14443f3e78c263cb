"""CALVIN's data files and recordings of the published simulator, where they are on this machine."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "calvin"
ASSETS = SHARED / "assets"
GOLDEN = SHARED / "golden"

needs_calvin = pytest.mark.skipif(
    not ASSETS.is_dir() or importlib.util.find_spec("pybullet") is None,
    reason="CALVIN's data files or pybullet are not on this machine",
)


def load_recording(name):
    with np.load(GOLDEN / "rollouts" / f"{name}.npz") as arrays:
        return dict(arrays), json.loads((GOLDEN / "rollouts" / f"{name}.json").read_text(encoding="utf-8"))
