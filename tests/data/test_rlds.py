import json

import numpy as np
import pytest
import rlds_writing as rlds

from one_sample import sample
from rdvla.data.convert import convert
from rdvla.data.images import decode_image, decode_jpeg
from rdvla.data.lerobot_v3 import LeRobotDataset
from rdvla.data.rlds import RldsDataset
from rdvla.data.tfrecord import parse_example, read_records
from rdvla.errors import ConfigError, DatasetError

PRIMARY, WRIST = "observation.images.image", "observation.images.image2"
CALVIN_CAMERAS = {"rgb_static": (20, 20), "rgb_gripper": (12, 12)}


WRITTEN_BY_TENSORFLOW = bytes.fromhex(
    "5b000000000000001b01028a0a590a220a0e73746570732f69735f666972737412101a0e0a0c0100fdffffffffffffffff010a150a0474657874"
    "120d0a0b0a077069636b2075700a000a1c0a0c73746570732f616374696f6e120c120a0a080000003f000080bf9667d1480000000000000000"
    "29039807d8ea82a2"
)
"""Two records: an Example with two floats, three integers and two strings, and an empty one."""


@pytest.fixture
def libero(tmp_path):
    episodes = [rlds.steps(seed, length=4 + seed, sentence=f"Pick up cup {seed % 2}") for seed in range(3)]
    return rlds.write(tmp_path, "libero_spatial_no_noops", episodes), episodes


def test_episodes_come_back(libero):
    folder, episodes = libero
    dataset = RldsDataset.open(folder)
    assert (len(dataset), dataset.fps, dataset.robot_type) == (3, 20, "panda")
    for episode, written in zip(dataset, episodes, strict=True):
        assert episode.task == written["steps/language_instruction"][0].decode()
        np.testing.assert_array_equal(episode.columns["action"], written["steps/action"])
        np.testing.assert_array_equal(episode.columns["observation.state"], written["steps/observation/state"])
        assert episode.images[PRIMARY] == written["steps/observation/image"]
        assert episode.images[WRIST] == written["steps/observation/wrist_image"]


def test_records_that_tensorflow_wrote(tmp_path):
    path = tmp_path / "one.tfrecord"
    path.write_bytes(WRITTEN_BY_TENSORFLOW)
    first, second = [parse_example(record, "a record") for record in read_records(path)]
    np.testing.assert_array_equal(first["steps/action"], np.array([0.5, -1], np.float32))
    np.testing.assert_array_equal(first["steps/is_first"], [1, 0, -3])
    assert first["text"] == [b"pick up", b""]
    assert second == {}


def test_the_writer_of_these_tests_writes_what_tensorflow_does(tmp_path):
    values = {
        "steps/is_first": np.array([1, 0, -3]),
        "text": [b"pick up", b""],
        "steps/action": np.array([0.5, -1], np.float32),
    }
    assert rlds.frame(rlds.example(values)) + rlds.frame(b"") == WRITTEN_BY_TENSORFLOW


def test_converted_without_a_changed_pixel(libero, tmp_path):
    folder, episodes = libero
    seen = []
    convert(RldsDataset.open(folder.parent), tmp_path / "v3", progress=lambda *counts: seen.append(counts))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    dataset = LeRobotDataset.open(tmp_path / "v3", chunk_size=2, cache_dir=tmp_path / "cache")
    assert dataset.info.fps == 20
    assert dataset.info.features["action"].names[-1] == "gripper"
    index = 0
    for written in episodes:
        for step, action in enumerate(written["steps/action"]):
            found = sample(dataset, index)
            np.testing.assert_array_equal(found.actions[0], action)
            np.testing.assert_array_equal(
                found.images["primary"], decode_jpeg(written["steps/observation/image"][step])
            )
            np.testing.assert_array_equal(
                found.images["wrist"], decode_jpeg(written["steps/observation/wrist_image"][step])
            )
            index += 1
    assert index == len(dataset)


def test_converted_to_video(libero, tmp_path):
    folder, episodes = libero
    info = convert(RldsDataset.open(folder), tmp_path / "v3", storage="video")
    assert info.features[PRIMARY].dtype == "video"
    dataset = LeRobotDataset.open(tmp_path / "v3", chunk_size=2, cache_dir=tmp_path / "cache")
    exact = decode_jpeg(episodes[0]["steps/observation/image"][0]).astype(int)
    assert np.abs(sample(dataset, 0).images["primary"] - exact).mean() < 8


def test_calvin_names(tmp_path):
    episode = rlds.steps(0, cameras=CALVIN_CAMERAS, state=15, kind="PNG")
    folder = rlds.write(tmp_path, "calvin_abc", [episode], cameras=CALVIN_CAMERAS, state=15, shards=1)
    dataset = RldsDataset.open(folder)
    (found,) = dataset
    assert dataset.fps == 30
    stored = episode["steps/observation/state"]
    np.testing.assert_array_equal(found.columns["observation.state"], stored[:, [0, 1, 2, 3, 4, 5, 6, 14]])
    np.testing.assert_array_equal(decode_image(found.images[PRIMARY][2]), rlds.picture(2, (20, 20)))
    assert dataset.features[WRIST].image_size == (12, 12)


def test_an_unknown_dataset_needs_its_rate_only(tmp_path):
    cameras = {"front": (16, 16)}
    folder = rlds.write(tmp_path, "kitchen", [rlds.steps(0, cameras=cameras, state=3)], cameras=cameras, state=3)
    with pytest.raises(ConfigError, match="--fps"):
        RldsDataset.open(folder)
    dataset = RldsDataset.open(folder, fps=5)
    assert list(dataset.features) == ["observation.images.front", "observation.state", "action"]
    assert dataset.features["observation.state"].shape == (3,)


def test_the_newest_version_is_taken(libero):
    folder, _ = libero
    for version in ("1.10.0", "1.9.0"):
        newer = folder.parent / version
        newer.mkdir()
        for name in ("dataset_info.json", "features.json"):
            (newer / name).write_text((folder / name).read_text())
    with pytest.raises(DatasetError, match=r"1\.10\.0/.* is missing"):
        list(RldsDataset.open(folder.parent))


def test_what_is_wrong_is_said(libero, tmp_path):
    folder, episodes = libero
    with pytest.raises(DatasetError, match="no RLDS dataset"):
        RldsDataset.open(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"no split 'trian'.*'train'"):
        RldsDataset.open(folder, split="trian")
    features = (folder / "features.json").read_text()
    (folder / "features.json").write_text(features.replace('"action"', '"actoin"'))
    with pytest.raises(DatasetError, match=r"'steps/action'.*'steps/actoin'"):
        RldsDataset.open(folder)
    for damaged, message in (("{", "is not valid JSON"), ("[]", "must hold a JSON object")):
        (folder / "features.json").write_text(damaged)
        with pytest.raises(DatasetError, match=message):
            RldsDataset.open(folder)
    mixed = episodes[0] | {"steps/language_instruction": [b"one", b"two"] * 2}
    with pytest.raises(DatasetError, match="2 instructions"):
        list(RldsDataset.open(rlds.write(tmp_path, "libero_mixed", [mixed])))
    short = episodes[0] | {"steps/observation/image": episodes[0]["steps/observation/image"][:2]}
    with pytest.raises(DatasetError, match="2 images 'steps/observation/image' for 4 actions"):
        list(RldsDataset.open(rlds.write(tmp_path, "libero_short", [short])))
    cut = episodes[0] | {"steps/action": episodes[0]["steps/action"][:-1]}
    with pytest.raises(DatasetError, match=r"21 numbers 'steps/action' and 32 '.*', which are no steps of 7"):
        list(RldsDataset.open(rlds.write(tmp_path, "libero_cut", [cut])))
    foreign = episodes[0] | {"steps/language_instruction": [b"\xff"] * 4}
    with pytest.raises(DatasetError, match=r"record 0: 'steps/language_instruction' is not UTF-8"):
        list(RldsDataset.open(rlds.write(tmp_path, "libero_foreign", [foreign])))
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "array_record"}))
    (folder / "features.json").write_text(features)
    with pytest.raises(DatasetError, match="only tfrecord"):
        RldsDataset.open(folder)


@pytest.mark.parametrize("place", [0, 8, 20, -1])
def test_a_changed_byte_is_noticed(libero, place):
    folder, _ = libero
    path = folder / "libero_spatial_no_noops-train.tfrecord-00000-of-00002"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="damaged"):
        list(RldsDataset.open(folder))


def test_a_cut_or_incomplete_file_is_noticed(libero):
    folder, episodes = libero
    path = folder / "libero_spatial_no_noops-train.tfrecord-00000-of-00002"
    whole = path.read_bytes()
    for size in (len(whole) - 5, 7, 13):
        path.write_bytes(whole[:size])
        with pytest.raises(DatasetError, match="cut short"):
            list(RldsDataset.open(folder))
    path.write_bytes(rlds.frame(rlds.example(episodes[0])))
    with pytest.raises(DatasetError, match=r"holds 1 episodes.* says 2"):
        list(RldsDataset.open(folder))
    path.write_bytes(rlds.frame(b"no message"))
    with pytest.raises(DatasetError, match=r"not a tf\.train\.Example"):
        list(RldsDataset.open(folder))


def test_a_failed_conversion_leaves_nothing(libero, tmp_path):
    folder, _ = libero
    path = folder / "libero_spatial_no_noops-train.tfrecord-00001-of-00002"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DatasetError, match="cut short"):
        convert(RldsDataset.open(folder), tmp_path / "v3")
    assert not (tmp_path / "v3").exists()


@pytest.mark.parametrize("name", ["libero_mine", "calvin_mine"])
def test_a_known_name_with_other_sizes_is_no_known_robot(tmp_path, name):
    cameras = {"front": (16, 16)}
    folder = rlds.write(tmp_path, name, [rlds.steps(0, cameras=cameras, state=5)], cameras=cameras, state=5, shards=1)
    with pytest.raises(ConfigError, match=r"--fps\. Its name says"):
        RldsDataset.open(folder)
    (episode,) = RldsDataset.open(folder, fps=10)
    assert episode.columns["observation.state"].shape == (6, 5)


def test_images_of_undeclared_size_are_looked_at(tmp_path):
    folder = rlds.write(tmp_path, "kitchen", [rlds.steps(0, cameras={"front": (16, 24)})], cameras={"front": (-1, -1)})
    dataset = RldsDataset.open(folder, fps=5)
    assert dataset.features["observation.images.front"].image_size == (16, 24)
    assert convert(dataset, tmp_path / "v3").total_frames == 6


def test_without_a_camera_nothing_is_converted(tmp_path):
    episode = rlds.steps(0, cameras={"front": (16, 16)})
    del episode["steps/observation/front"]
    folder = rlds.write(tmp_path, "kitchen", [episode], cameras={"depth": (16, 16)})
    features = json.loads((folder / "features.json").read_text().replace('"16", "16", "3"', '"16", "16", "1"'))
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(DatasetError, match="has no camera"):
        RldsDataset.open(folder, fps=5)
