"""Datasets between rdvla and the real LeRobot, both ways (`make lerobot`): every picture's brightness is its code."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets.dataset_tools import delete_episodes, merge_datasets, remove_feature, split_dataset
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from rdvla.data import lerobot_v3
from rdvla.data.checks import check_dataset
from rdvla.data.lerobot_meta import FRESH_KEY, Feature, camera_feature, vector_feature
from rdvla.data.lerobot_writer import LeRobotWriter, RecordedEpisode
from rdvla.data.summary import summarise

KEY = "observation.images.image"
LENGTH, RENDERED_EVERY = 6, 3
STORAGES = ("image", "video")


def picture(code):
    """A grey picture whose brightness names it, through video too."""
    return np.full((64, 64, 3), 20 + 9 * code, dtype=np.uint8)


def code_of(images):
    """The codes of pictures of any layout: float in 0..1, or uint8."""
    values = np.asarray(images, dtype=np.float64).reshape(len(images), -1).mean(axis=1)
    return (np.asarray(values * (255 if values.max() <= 1 else 1)) - 20) / 9


def record(root, first, count, storage="video", width=1):
    """Episode `n` is numbered `first + n` in picture, state and sentence; its actions count the rows."""
    features = {
        KEY: camera_feature(64, 64, storage),
        "observation.state": vector_feature([f"code{i}" for i in range(width)]),
        "action": vector_feature([f"row{i}" for i in range(width)]),
        FRESH_KEY: Feature("bool", (1,)),
    }
    writer = LeRobotWriter(root, fps=20, features=features)
    rows = np.arange(LENGTH)
    for number in range(first, first + count):
        code = np.full((LENGTH, width), number, dtype=np.float32)
        action = np.repeat(rows[:, None], width, axis=1).astype(np.float32) / 10
        columns = {"observation.state": code, "action": action, FRESH_KEY: rows % RENDERED_EVERY == 0}
        shown = rows // RENDERED_EVERY
        pictures = [picture(number)] * (shown[-1] + 1)
        writer.add_episode(RecordedEpisode(f"task {number}", columns, {KEY: pictures}, shown))
    writer.finalize()
    return root


def read_here(root, tmp_path):
    """Our reading of a dataset: the codes in order of appearance; each picture has that of its row."""
    assert not [str(finding) for finding in check_dataset(root) if finding.severity == "error"], root
    dataset = lerobot_v3.LeRobotDataset.open(root, chunk_size=2, cache_dir=tmp_path / "cache")
    batch = dataset.batch(range(len(dataset)))
    codes = batch.state[:, 0]
    np.testing.assert_allclose(code_of(batch.images["primary"]), codes, atol=0.35)
    assert list(batch.instructions) == [f"task {code:.0f}" for code in codes]
    return dataset, sorted(set(codes.tolist()))


@pytest.mark.parametrize("storage", STORAGES)
def test_lerobot_indexes_what_we_write(tmp_path, storage):
    root = record(tmp_path / "one", 0, 3, storage)
    stamps = {"action": [step / 20 for step in range(4)], KEY: [-1 / 20, 0.0]}
    dataset = LeRobotDataset("rdvla/one", root=root, delta_timestamps=stamps)
    assert (len(dataset), dataset.num_episodes) == (3 * LENGTH, 3)
    for index in range(len(dataset)):
        item, (episode, row) = dataset[index], divmod(index, LENGTH)
        np.testing.assert_allclose(code_of(item[KEY]), [episode, episode], atol=0.35)
        inside = np.minimum(np.arange(row, row + 4), LENGTH - 1)
        np.testing.assert_allclose(item["action"].numpy().ravel(), inside / 10, atol=1e-6)
        assert item["action_is_pad"].tolist() == [row + step >= LENGTH for step in range(4)]
        assert item[f"{KEY}_is_pad"].tolist() == [row == 0, False]
        assert item["task"] == f"task {episode}"
        assert bool(item[FRESH_KEY]) == (row % RENDERED_EVERY == 0)


@pytest.mark.parametrize("storage", STORAGES)
def test_merged_split_and_edited(tmp_path, storage):
    one = LeRobotDataset("rdvla/one", root=record(tmp_path / "one", 0, 3, storage))
    two = LeRobotDataset("rdvla/two", root=record(tmp_path / "two", 3, 2, storage))
    merge_datasets([one, two], output_repo_id="rdvla/all", output_dir=tmp_path / "all")
    delete_episodes(one, [1], output_dir=tmp_path / "fewer", repo_id="rdvla/fewer")
    split_dataset(one, {"head": [0], "tail": [1, 2]}, output_dir=tmp_path / "split")
    remove_feature(one, [FRESH_KEY], output_dir=tmp_path / "plain", repo_id="rdvla/plain")
    expected = {"all": [0, 1, 2, 3, 4], "fewer": [0, 2], "split/head": [0], "split/tail": [1, 2], "plain": [0, 1, 2]}
    for name, codes in expected.items():
        dataset, found = read_here(tmp_path / name, tmp_path)
        assert found == codes, name
        assert len(dataset) == (LENGTH if name == "plain" else LENGTH // RENDERED_EVERY) * len(codes)


@pytest.mark.parametrize("storage", STORAGES)
def test_recording_is_resumed(tmp_path, storage):
    root = record(tmp_path / "one", 0, 2, storage)
    resume = getattr(LeRobotDataset, "resume", LeRobotDataset)  # 0.4 appends to a dataset that was opened
    dataset = resume("rdvla/one", root=root)
    add_episode(dataset, 2)
    dataset.finalize()
    read, found = read_here(root, tmp_path)
    assert found == [0, 1, 2]
    assert len(read) == 2 * LENGTH // RENDERED_EVERY + LENGTH


def add_episode(dataset, number, extra=None):
    for row in range(LENGTH):
        dataset.add_frame(
            {
                KEY: picture(number),
                "observation.state": np.asarray([number], dtype=np.float32),
                "action": np.asarray([row / 10], dtype=np.float32),
                "task": f"task {number}",
                **(extra or {FRESH_KEY: np.asarray([True])}),
            }
        )
    dataset.save_episode()


@pytest.mark.parametrize("storage", STORAGES)
def test_what_lerobot_writes_reads_here(tmp_path, storage):
    """With a feature of two axes, an integer and a sentence beside what every policy has."""
    features = {
        KEY: camera_feature(64, 64, storage).to_json(),
        "observation.state": vector_feature(["code"]).to_json(),
        "action": vector_feature(["row"]).to_json(),
        "force": {"dtype": "float32", "shape": (2, 3), "names": None},
        "phase": {"dtype": "int64", "shape": (1,), "names": None},
        "remark": {"dtype": "string", "shape": (1,), "names": None},
    }
    features["observation.state"]["shape"] = features["action"]["shape"] = (1,)
    features[KEY]["shape"] = (64, 64, 3)
    root = tmp_path / "theirs"
    dataset = LeRobotDataset.create("rdvla/theirs", fps=20, features=features, root=root, use_videos=storage == "video")
    extra = {"force": np.arange(6, dtype=np.float32).reshape(2, 3), "phase": np.asarray([4]), "remark": "fine"}
    for number in range(2):
        add_episode(dataset, number, extra)
    dataset.finalize()
    read, found = read_here(root, tmp_path)
    assert found == [0, 1]
    assert len(read) == 2 * LENGTH
    force = next(vector for vector in summarise(root).vectors if vector.key == "force")
    assert force.names == tuple(f"force[{row},{column}]" for row in range(2) for column in range(3))
    np.testing.assert_allclose(force.stats.mean, np.arange(6))


@pytest.mark.slow
def test_lerobot_trains_its_own_policy_on_ours(tmp_path):
    root = record(tmp_path / "one", 0, 3, width=2)  # LeRobot drops the axis of vectors of one entry; ACT needs it
    command = [
        str(Path(sys.executable).parent / "lerobot-train"),
        "--dataset.repo_id=rdvla/one",
        f"--dataset.root={root}",
        f"--output_dir={tmp_path / 'run'}",
        "--policy.type=act",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--policy.pretrained_backbone_weights=null",
        "--policy.chunk_size=4",
        "--policy.n_action_steps=4",
        "--policy.dim_model=32",
        "--policy.n_heads=2",
        "--steps=2",
        "--batch_size=2",
        "--num_workers=0",
        "--save_freq=2",
        "--log_freq=1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run/checkpoints/000002/pretrained_model/model.safetensors").is_file()
