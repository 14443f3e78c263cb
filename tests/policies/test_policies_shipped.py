"""The policies that come with the repository: they load, decide, and are what their cards say."""

from pathlib import Path

import numpy as np
import pytest

from rdvla import checkpoints
from rdvla.policies import load_policy
from rdvla.policy import Ask
from rdvla.stops import StopRule
from rdvla.types import Observation

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"


@pytest.mark.parametrize("folder", sorted(CHECKPOINTS.iterdir()), ids=lambda folder: folder.name)
def test_a_shipped_policy_decides_and_is_as_large_as_its_card_says(folder):
    parameters = sum(weight.numel() for weight in checkpoints.load(folder).model.parameters())
    assert f"{parameters:,} parameters" in (folder / "README.md").read_text(encoding="utf-8")
    policy = load_policy(folder.name)
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (200, 200, 3), dtype=np.uint8) for name in policy.metadata.cameras}
    state = np.zeros(policy.metadata.state_dim, dtype=np.float32)

    def chunk(sentence, depth):
        return policy.infer(Observation(images, state, sentence), Ask(StopRule.fixed(depth), seed=0)).actions

    known, other = chunk("grasp and lift the red block", 8), chunk("open the drawer", 8)
    assert np.isfinite(known).all()
    assert np.abs(known - other).max() > 1e-3  # it hears
    assert np.abs(known - chunk("grasp and lift the red block", 1)).max() > 1e-6  # and thinks
