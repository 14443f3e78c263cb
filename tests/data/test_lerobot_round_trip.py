import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_recordings import DATA, PRIMARY, STATE, WRIST, episode, record

from one_sample import sample
from rdvla.data.frame_cache import resize_to
from rdvla.data.lerobot_source import LeRobotSource
from rdvla.data.lerobot_v3 import LeRobotDataset
from rdvla.errors import ConfigError, DatasetError
from rdvla.types import ActionConvention


def open_dataset(root, tmp_path, **options):
    return LeRobotDataset.open(root, **({"chunk_size": 4, "cache_dir": tmp_path / "cache"} | options))


def test_images_come_back_exactly(tmp_path):
    episodes = [episode(0), episode(1, length=5, task="open the drawer")]
    record(tmp_path / "d", episodes)
    dataset = open_dataset(tmp_path / "d", tmp_path)
    assert len(dataset) == 16
    assert dataset.cameras == ("primary", "wrist")
    assert dataset.instructions == ("open the drawer", "pick up the cup")
    for index, (number, frame) in enumerate([(0, f) for f in range(11)] + [(1, f) for f in range(5)]):
        found, recorded = sample(dataset, index), episodes[number]
        assert (found.episode_index, found.frame_index) == (number, frame)
        assert found.instruction == recorded.task
        np.testing.assert_array_equal(found.images["primary"], recorded.images[PRIMARY][frame])
        np.testing.assert_array_equal(found.images["wrist"], recorded.images[WRIST][frame])
        np.testing.assert_array_equal(found.state, recorded.columns[STATE][frame])
        window = np.minimum(np.arange(frame, frame + 4), recorded.length - 1)
        np.testing.assert_array_equal(found.actions, recorded.columns["action"][window])
        assert found.action_is_pad.tolist() == [frame + k >= recorded.length for k in range(4)]


@pytest.mark.parametrize("fps", [20, 29.97])
@pytest.mark.parametrize("size", [(48, 48), (96, 128)])  # too small for AV1; large enough
def test_video_comes_back_closely(tmp_path, size, fps):
    episodes = [episode(seed, length=7, size=size) for seed in range(3)]
    record(tmp_path / "d", episodes, dtype="video", size=size, fps=fps)
    dataset = open_dataset(tmp_path / "d", tmp_path)
    assert len(dataset) == 21
    for index in range(21):
        shown = sample(dataset, index).images["wrist"].astype(int)
        recorded = [e.images[WRIST][frame].astype(int) for e in episodes for frame in range(7)]
        distances = [np.abs(shown - image).mean() for image in recorded]
        assert np.argmin(distances) == index
        assert distances[index] < 4


def test_only_fresh_rows_start_a_chunk(tmp_path):
    episodes = [episode(0, length=10, render_every=4), episode(1, length=9, render_every=4)]
    record(tmp_path / "d", episodes, fresh=True)
    dataset = open_dataset(tmp_path / "d", tmp_path)
    assert dataset.batch(range(len(dataset))).frame_index.tolist() == [0, 4, 8, 0, 4, 8]
    assert dataset.frames["primary"].shape == (6, 24, 32, 3)
    np.testing.assert_array_equal(sample(dataset, 4).images["primary"], episodes[1].images[PRIMARY][1])
    np.testing.assert_array_equal(sample(dataset, 4).actions, episodes[1].columns["action"][4:8])
    published = open_dataset(tmp_path / "d", tmp_path, sampling="published")
    assert published.batch(range(len(published))).frame_index.tolist() == [0, 4, 0, 4]


def test_the_last_action_goes_on_beyond_the_end(tmp_path):
    record(tmp_path / "d", episodes := [episode(0, length=6), episode(1, length=6)])
    actions = episodes[0].columns["action"]
    last = open_dataset(tmp_path / "d", tmp_path, sampling="lasting").batch([4])
    np.testing.assert_array_equal(last.actions[0], actions[[4, 5, 5, 5]])
    assert not last.action_is_pad.any()


def test_at_rest_beyond_the_end(tmp_path):
    record(tmp_path / "d", episodes := [episode(0, length=6), episode(1, length=6)])
    actions = episodes[0].columns["action"]
    dataset = open_dataset(tmp_path / "d", tmp_path, sampling="resting")
    assert len(dataset) == 12
    last = dataset.batch([4])
    np.testing.assert_array_equal(last.actions[0, :2], actions[4:])
    assert not last.actions[0, 2:, :-1].any()
    assert last.actions[0, :, -1].tolist() == [actions[4, -1], *[actions[5, -1]] * 3]
    assert not last.action_is_pad.any()
    for each in episodes:
        each.columns["action"][:, 1] = np.linspace(0.2, 0.7, 6)
    record(tmp_path / "absolute", episodes)
    with pytest.raises(ConfigError, match=r"relative actions, and entry 1 of '.*absolute' goes from 0\.2 to 0\.7"):
        open_dataset(tmp_path / "absolute", tmp_path, sampling="resting")


def test_samples_at_a_change_of_the_gripper_come_more_often(tmp_path):
    episodes = [episode(seed, length=8) for seed in range(2)]
    for each, gripper in zip(episodes, ([1, 0.7, 0, 1, 0.5, -1, 0, -1], [-1] * 8), strict=True):
        each.columns["action"][:, -1] = gripper  # from one episode to the next is no change
    record(tmp_path / "d", episodes)
    dataset = open_dataset(tmp_path / "d", tmp_path, chunk_size=3)
    assert dataset.with_changes(1).anchors.tolist() == list(range(16))
    assert dataset.with_changes(3).anchors.tolist() == [*range(16), 3, 3, 4, 4, 5, 5]
    assert dataset.select([1]).with_changes(3).anchors.tolist() == list(range(8, 16))
    assert dataset.with_changes(3).select([0]).anchors.tolist() == list(range(8))


def test_several_datasets_follow_each_other(tmp_path):
    episodes = [episode(0, task="open the drawer"), episode(1, length=9, render_every=4), episode(2, length=5)]
    record(tmp_path / "a", episodes[:1])
    record(tmp_path / "b", episodes[1:2], fresh=True)
    record(tmp_path / "c", episodes[2:])
    joined = open_dataset([tmp_path / name for name in "abc"], tmp_path)
    assert joined.episodes == (0, 1, 2)
    assert joined.instructions == ("open the drawer", "pick up the cup")
    assert [joined.instruction(number) for number in range(3)] == [each.task for each in episodes]
    batch = joined.batch(range(len(joined)))
    parts = [open_dataset(tmp_path / name, tmp_path).select([0]) for name in "abc"]
    alone = [part.batch(range(len(part))) for part in parts]
    assert batch.episode_index.tolist() == [0] * 11 + [1] * 3 + [2] * 5
    for field in ("state", "actions", "action_is_pad", "frame_index", "instructions"):
        np.testing.assert_array_equal(getattr(batch, field), np.concatenate([getattr(each, field) for each in alone]))
    for camera, images in batch.images.items():
        np.testing.assert_array_equal(images, np.concatenate([each.images[camera] for each in alone]))
    assert joined.statistics().num_transitions == 25


def test_entries_in_another_order_are_not_joined(tmp_path):
    for name, order in (("a", [0, 1]), ("b", [1, 0])):
        record(tmp_path / name, [episode(0, state=2)], state=2)
        info = json.loads((tmp_path / name / "meta/info.json").read_text())
        info["features"][STATE]["names"] = {"motors": [["shoulder", "elbow"][entry] for entry in order]}
        (tmp_path / name / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(DatasetError, match=r"has the entries shoulder, elbow in .*, elbow, shoulder in"):
        open_dataset([tmp_path / "a", tmp_path / "b"], tmp_path)


def test_cameras_that_only_one_dataset_has(tmp_path):
    record(tmp_path / "a", [episode(0)])
    record(tmp_path / "b", [episode(0)])
    path = tmp_path / "b/meta/info.json"
    path.write_text(path.read_text().replace(WRIST, "observation.images.top"))
    data = tmp_path / "b" / DATA
    table = pq.read_table(data)
    names = [name.replace(WRIST, "observation.images.top") for name in table.schema.names]
    pq.write_table(table.rename_columns(names), data)
    with pytest.raises(DatasetError, match=r"has the cameras primary, wrist, '.*b' primary, top; name those that both"):
        open_dataset([tmp_path / "a", tmp_path / "b"], tmp_path)


def test_cameras_of_nearly_the_same_name_are_two(tmp_path):
    record(tmp_path / "d", episodes := [episode(0)])
    dataset = open_dataset(tmp_path / "d", tmp_path, cameras={"arm/left": PRIMARY, "arm_left": WRIST})
    seen = dataset.batch(range(len(dataset))).images
    for camera, key in (("arm/left", PRIMARY), ("arm_left", WRIST)):
        np.testing.assert_array_equal(seen[camera], episodes[0].images[key])


def test_two_cameras_that_would_be_called_the_same(tmp_path):
    record(tmp_path / "d", [episode(0)])
    path = tmp_path / "d/meta/info.json"
    path.write_text(path.read_text().replace(WRIST, "observation.images.primary"))
    with pytest.raises(DatasetError, match="would both be the camera 'primary'"):
        open_dataset(tmp_path / "d", tmp_path)


def test_an_episode_says_where_it_is_from(tmp_path):
    record(tmp_path / "a", [episode(0), episode(1)])
    record(tmp_path / "b", [episode(2)])
    joined = open_dataset([tmp_path / name for name in "aba"], tmp_path)
    assert [joined.origin(number) for number in joined.episodes] == [
        *((tmp_path / "a", number) for number in (0, 1)), (tmp_path / "b", 0), *((tmp_path / "a", n) for n in (0, 1))
    ]  # fmt: skip


def test_each_of_several_datasets_has_to_fit_the_convention(tmp_path):
    """Beside a gripper of -1 and +1, one of 0 and 1 looks as if it were of the same kind."""
    for name, commands in (("a", (-1, 1)), ("b", (0, 1))):
        one = episode(0)
        one.columns["action"][:, -1] = np.resize(commands, len(one.columns["action"]))
        record(tmp_path / name, [one])
    open_dataset(tmp_path / "a", tmp_path).look_through(ActionConvention("open_is_negative"))
    for order in ("ab", "ba"):
        joined = open_dataset([tmp_path / name for name in order], tmp_path)
        with pytest.raises(DatasetError, match=r"b': the last action entry is .*0.*would train nonsense"):
            joined.look_through(ActionConvention("open_is_negative"))


def test_statistics_of_many_episodes_take_no_more_memory_than_their_rows(tmp_path):
    """A list of row numbers for every episode would be 1,500 x 4,500 x 8 bytes."""
    count = 1500
    record(tmp_path / "d", [episode(seed, length=3, size=(8, 8)) for seed in range(5)], size=(8, 8))
    dataset = open_dataset(tmp_path / "d", tmp_path)
    one = dataset.source
    many = LeRobotSource.join([one] * (count // 5))
    dataset = replace(dataset, source=many, episodes=tuple(range(count)))
    tracemalloc.start()
    found = dataset.statistics(ActionConvention("none"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.num_transitions == 3 * count
    assert peak < 20e6


def test_datasets_that_do_not_fit_together(tmp_path):
    record(tmp_path / "a", [episode(0)])
    record(tmp_path / "fps", [episode(1)], fps=10)
    record(tmp_path / "state", [episode(1, state=5)], state=5)
    record(tmp_path / "size", [episode(1, size=(32, 32))], size=(32, 32))
    for other, message in [("fps", "20.*fps.*10"), ("state", "8 entries in.*5 in"), ("size", "24, 32.*32, 32")]:
        with pytest.raises(DatasetError, match=message):
            open_dataset([tmp_path / "a", tmp_path / other], tmp_path)


def test_select_shares_frames(tmp_path):
    record(tmp_path / "d", [episode(seed, length=3) for seed in range(4)])
    dataset = open_dataset(tmp_path / "d", tmp_path)
    view = dataset.select([3, 1])
    assert view.episodes == (1, 3)
    assert view.batch(range(6)).episode_index.tolist() == [1, 1, 1, 3, 3, 3]
    assert view.frames is dataset.frames
    np.testing.assert_array_equal(sample(view, 3).images["primary"], sample(dataset, 9).images["primary"])
    assert view.statistics().num_transitions == 6


def test_transform_is_applied_and_cached(tmp_path):
    recorded = episode(0, size=(64, 64))
    record(tmp_path / "d", [recorded], size=(64, 64))
    calls = []
    first = open_dataset(tmp_path / "d", tmp_path, transform=resize_to(32), progress=lambda *x: calls.append(x))
    box = recorded.images[PRIMARY][2].reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(sample(first, 2).images["primary"], box, atol=1.01)  # Pillow rounds after each axis
    assert calls[-1] == (2, 2)
    calls.clear()
    open_dataset(tmp_path / "d", tmp_path, transform=resize_to(32), progress=lambda *x: calls.append(x))
    assert calls == []
    open_dataset(tmp_path / "d", tmp_path, transform=resize_to(16), progress=lambda *x: calls.append(x))
    assert calls


def test_files_roll_over(tmp_path):
    episodes = [episode(seed, length=60, size=(64, 64)) for seed in range(3)]
    record(tmp_path / "d", episodes, dtype="video", size=(64, 64), data_file_mb=0.001, video_file_mb=0.001)
    assert len(list((tmp_path / "d/data/chunk-000").iterdir())) > 1
    assert len(list((tmp_path / "d/videos" / PRIMARY / "chunk-000").iterdir())) > 1
    dataset = open_dataset(tmp_path / "d", tmp_path)
    for index in range(0, 180, 7):
        recorded = episodes[index // 60]
        np.testing.assert_array_equal(sample(dataset, index).state, recorded.columns[STATE][index % 60])
        error = np.abs(sample(dataset, index).images["primary"].astype(int) - recorded.images[PRIMARY][index % 60])
        assert error.mean() < 4
