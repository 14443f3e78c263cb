"""CALVIN's original layout becomes v3.0; a file that would run code is refused."""

import os

import numpy as np
import pytest
from typer.testing import CliRunner

from rdvla.cli.main import app
from rdvla.data.calvin_npz import SENTENCES
from rdvla.data.lerobot_v3 import LeRobotDataset
from rdvla.errors import DatasetError
from rdvla.types import ActionConvention


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def step(number):
    rng = np.random.default_rng(number)
    return {
        "rgb_static": rng.integers(0, 256, (20, 20, 3), dtype=np.uint8),
        "rgb_gripper": rng.integers(0, 256, (12, 12, 3), dtype=np.uint8),
        "robot_obs": rng.normal(size=15),
        "rel_actions": np.append(rng.uniform(-1, 1, 6), [-1.0, 1.0][number % 2]),
    }


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "task_D_D" / "training"
    (folder / "lang_annotations").mkdir(parents=True)
    for number in range(100, 112):
        np.savez(folder / f"episode_{number:07d}.npz", **step(number))
    language = {"ann": ["open the drawer", "push it left"], "task": ["a", "b"], "emb": np.zeros((2, 1, 3), np.float32)}
    annotate(folder, {"language": language, "info": {"episodes": [], "indx": [(100, 104), (103, 108)]}})
    return folder.parent


def annotate(folder, document):
    np.save(folder / SENTENCES, np.array(document, dtype=object), allow_pickle=True)


def convert(root, output):
    return CliRunner().invoke(app, ["dataset", "convert", str(root), str(output)])


def test_annotated_steps_come_over_exactly(root, tmp_path):
    result = convert(root, tmp_path / "new")
    assert result.exit_code == 0, result.output
    dataset = LeRobotDataset.open(tmp_path / "new", chunk_size=1, cache_dir=tmp_path / "c")
    batch = dataset.batch(range(len(dataset)))
    steps = [step(number) for number in (*range(100, 105), *range(103, 109))]
    assert batch.instructions == ("open the drawer",) * 5 + ("push it left",) * 6
    for camera, name in {"primary": "rgb_static", "wrist": "rgb_gripper"}.items():
        np.testing.assert_array_equal(batch.images[camera], [each[name] for each in steps])
    np.testing.assert_array_equal(batch.actions[:, 0], np.float32([each["rel_actions"] for each in steps]))
    np.testing.assert_array_equal(batch.state, np.float32([each["robot_obs"][[*range(7), 14]] for each in steps]))
    assert dataset.info.fps == 30
    dataset.look_through(ActionConvention("open_is_positive"))
    with pytest.raises(DatasetError, match=r"CALVIN's robot, where the gripper is 'open_is_positive' .*'open_is_negat"):
        dataset.look_through(ActionConvention("open_is_negative"))


def test_a_file_that_would_run_something_is_refused(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    annotate(root / "training", {"language": Harmful()})
    result = convert(root, tmp_path / "new")
    assert isinstance(result.exception, DatasetError)
    assert "it names" in str(result.exception)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_damaged_annotation_file(root, tmp_path, content):
    (root / "training" / SENTENCES).write_bytes(content)
    assert isinstance(convert(root, tmp_path / "new").exception, DatasetError)


def test_a_missing_step_leaves_nothing(root, tmp_path):
    (root / "training" / "episode_0000107.npz").unlink()
    assert "episode_0000107.npz' is missing" in str(convert(root / "training", tmp_path / "new").exception)
    assert not (tmp_path / "new").exists()


def test_a_step_that_was_cut_is_named(root, tmp_path):
    path = root / "training" / "episode_0000107.npz"
    path.write_bytes(path.read_bytes()[:-100])
    assert "episode_0000107.npz' is damaged" in str(convert(root / "training", tmp_path / "new").exception)
