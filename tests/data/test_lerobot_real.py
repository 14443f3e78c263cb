"""Datasets that the real LeRobot wrote, read here as LeRobot itself reads them."""

from pathlib import Path

import numpy as np
import pytest

from rdvla.data.checks import check_dataset
from rdvla.data.lerobot_v3 import LeRobotDataset
from rdvla.data.summary import summarise

WRITTEN = Path(__file__).resolve().parents[3] / "shared" / "lerobot"
pytestmark = pytest.mark.skipif(not WRITTEN.is_dir(), reason="needs the datasets in ../shared/lerobot")

EXPECTED = sorted(path.stem for path in (WRITTEN / "expected").glob("*.npz"))
FOLDERS = sorted(path.parents[1] for path in WRITTEN.glob("by_*/*/meta/info.json"))


@pytest.mark.parametrize("name", EXPECTED)
def test_every_row_is_what_lerobot_returns(name, tmp_path):
    """Pictures, states, chunks by `delta_timestamps`, padding, numbers and sentences, to the last bit."""
    expected = np.load(WRITTEN / "expected" / f"{name}.npz")
    keys = [key.removeprefix("img/") for key in expected if key.startswith("img/")]
    length = expected["action"].shape[1]
    cameras = {key.rpartition(".")[2]: key for key in keys}
    root = WRITTEN / "by_0_4_4" / name
    dataset = LeRobotDataset.open(root, chunk_size=length, cameras=cameras, cache_dir=tmp_path)
    assert len(dataset) == len(expected["state"])
    batch = dataset.batch(range(len(dataset)))
    np.testing.assert_array_equal(batch.state, expected["state"])
    np.testing.assert_array_equal(batch.actions, expected["action"])
    np.testing.assert_array_equal(batch.action_is_pad, expected["pad"])
    assert list(batch.instructions) == expected["tasks"].tolist()
    for camera, key in cameras.items():
        np.testing.assert_array_equal(batch.images[camera], expected[f"img/{key}"], err_msg=key)


@pytest.mark.parametrize("root", FOLDERS, ids=lambda root: f"{root.parent.name}/{root.name}")
def test_it_is_fine_and_can_be_looked_at(root):
    assert not [str(finding) for finding in check_dataset(root) if finding.severity == "error"]
    summary = summarise(root, num_samples=1)
    assert summary.samples[0].images.keys() == set(summary.info.cameras)
