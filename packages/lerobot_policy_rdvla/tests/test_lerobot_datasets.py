"""Datasets that rdvla records, edited by the real LeRobot and read again (`make lerobot`)."""

import numpy as np
import pytest
from lerobot.datasets.dataset_tools import delete_episodes, merge_datasets, remove_feature, split_dataset
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from rdvla.data import lerobot_v3
from rdvla.data.checks import check_dataset
from rdvla.data.lerobot_meta import FRESH_KEY, Feature, camera_feature, vector_feature
from rdvla.data.lerobot_writer import LeRobotWriter, RecordedEpisode

KEY = "observation.images.image"


def picture(code):
    """A grey picture whose brightness names it, through video too."""
    return np.full((64, 64, 3), 20 + 9 * code, dtype=np.uint8)


def record(root, first, count):
    features = {
        KEY: camera_feature(64, 64, "video"),
        "observation.state": vector_feature(["code"]),
        "action": vector_feature(["code"]),
        FRESH_KEY: Feature("bool", (1,)),
    }
    writer = LeRobotWriter(root, fps=20, features=features)
    for number in range(first, first + count):
        code = np.full((6, 1), number, dtype=np.float32)
        columns = {"observation.state": code, "action": code, FRESH_KEY: np.arange(6) % 3 == 0}
        writer.add_episode(RecordedEpisode(f"task {number}", columns, {KEY: [picture(number)] * 2}, np.arange(6) // 3))
    writer.finalize()
    return root


@pytest.mark.slow
def test_merged_split_and_edited(tmp_path):
    one = LeRobotDataset("rdvla/one", root=record(tmp_path / "one", 0, 3))
    two = LeRobotDataset("rdvla/two", root=record(tmp_path / "two", 3, 2))
    merge_datasets([one, two], output_repo_id="rdvla/all", output_dir=tmp_path / "all")
    delete_episodes(one, [1], output_dir=tmp_path / "fewer", repo_id="rdvla/fewer")
    split_dataset(one, {"head": [0], "tail": [1, 2]}, output_dir=tmp_path / "split")
    remove_feature(one, [FRESH_KEY], output_dir=tmp_path / "plain", repo_id="rdvla/plain")
    expected = {"all": [0, 1, 2, 3, 4], "fewer": [0, 2], "split/head": [0], "split/tail": [1, 2], "plain": [0, 1, 2]}
    for name, codes in expected.items():
        root = tmp_path / name
        assert not [finding for finding in check_dataset(root) if finding.severity == "error"], name
        dataset = lerobot_v3.LeRobotDataset.open(root, chunk_size=2, cache_dir=tmp_path / "cache")
        batch = dataset.batch(range(len(dataset)))
        assert sorted(set(batch.state[:, 0].tolist())) == codes, name
        shown = batch.images["primary"].reshape(len(batch.state), -1).mean(axis=1)
        np.testing.assert_allclose(shown, 20 + 9 * batch.state[:, 0], atol=3)
        assert len(dataset) == (6 if name == "plain" else 2) * len(codes)
