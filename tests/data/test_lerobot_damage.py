"""What a user meets when a dataset is missing, damaged, foreign, or does not fit."""

import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_recordings import PRIMARY, WRIST, episode, features, record

from full_disk import no_file_beyond
from one_sample import sample
from rdvla.data.frame_cache import resize_to
from rdvla.data.lerobot_meta import camera_feature
from rdvla.data.lerobot_v3 import LeRobotDataset
from rdvla.data.lerobot_writer import LeRobotWriter, RecordedEpisode
from rdvla.errors import ConfigError, DatasetError, StorageError
from rdvla.types import ActionConvention


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    for dtype in ("image", "video"):
        record(folder / dtype, [episode(s, length=4, size=(64, 64)) for s in range(2)], dtype=dtype, size=(64, 64))
    return folder


@pytest.fixture(params=["image", "video"])
def root(request, originals, tmp_path):
    return shutil.copytree(originals / request.param, tmp_path / "d")


def open_dataset(root, **options):
    return LeRobotDataset.open(root, **({"chunk_size": 4, "cache_dir": root.parent / "cache"} | options))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit_info(root, edit):
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    edit(info)
    path.write_text(json.dumps(info))


def rewrite(path, edit):
    pq.write_table(edit(pq.read_table(path)), path)


def test_no_folder(tmp_path):
    with pytest.raises(DatasetError, match="no dataset directory"):
        open_dataset(tmp_path / "nothing")


@pytest.mark.parametrize(
    "name",
    [
        "meta/info.json",
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
    ],
)
def test_missing_file(root, name):
    (root / name).unlink()
    with pytest.raises(DatasetError, match=name.split("/")[1].split(".")[0]):
        open_dataset(root)


@pytest.mark.parametrize(
    "name",
    [
        "meta/info.json",
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
    ],
)
def test_truncated_file(root, name):
    truncate(root / name)
    with pytest.raises(DatasetError, match=name.split("/")[-1]):
        open_dataset(root)


def test_damaged_video(originals, tmp_path):
    root = shutil.copytree(originals / "video", tmp_path / "d")
    video = root / "videos" / PRIMARY / "chunk-000/file-000.mp4"
    truncate(video)
    with pytest.raises(DatasetError, match=r"file-000\.mp4"):
        open_dataset(root)
    video.unlink()
    with pytest.raises(DatasetError, match=r"file-000\.mp4' is missing"):
        open_dataset(root)


def test_video_shorter_than_promised(originals, tmp_path):
    root = shutil.copytree(originals / "video", tmp_path / "d")
    longer = tmp_path / "longer"
    record(longer, [episode(s, length=6, size=(64, 64)) for s in range(2)], dtype="video", size=(64, 64))
    shutil.copytree(root / "videos", longer / "videos", dirs_exist_ok=True)
    with pytest.raises(DatasetError, match="shorter"):
        open_dataset(longer)


def test_damaged_image(originals, tmp_path):
    root = shutil.copytree(originals / "image", tmp_path / "d")

    def spoil(table):
        cells = table[WRIST].to_pylist()
        cells[5]["bytes"] = b"not an image"
        return table.set_column(table.column_names.index(WRIST), WRIST, pa.array(cells, table[WRIST].type))

    rewrite(root / "data/chunk-000/file-000.parquet", spoil)
    with pytest.raises(DatasetError, match="episode 1, frame 1"):
        open_dataset(root)


@pytest.mark.parametrize("version", ["v2.1", "v2.0", None])
def test_other_versions_say_how_to_convert(root, version):
    edit_info(root, lambda info: info.update(codebase_version=version))
    with pytest.raises(DatasetError, match="rdvla dataset convert"):
        open_dataset(root)


def test_incomplete_info(root):
    edit_info(root, lambda info: info.pop("features"))
    with pytest.raises(DatasetError, match="incomplete"):
        open_dataset(root)


def test_totals_that_disagree(root):
    edit_info(root, lambda info: info.update(total_episodes=7))
    with pytest.raises(DatasetError, match="says 7 episodes"):
        open_dataset(root)


def test_rows_that_are_gone(root):
    rewrite(root / "data/chunk-000/file-000.parquet", lambda table: table.slice(0, 7))
    with pytest.raises(DatasetError, match="counts 8 frames"):
        open_dataset(root)


def test_rows_of_another_episode(root):
    rewrite(
        root / "data/chunk-000/file-000.parquet",
        lambda t: t.set_column(t.column_names.index("episode_index"), "episode_index", pa.array([0] * 5 + [1] * 3)),
    )
    with pytest.raises(DatasetError, match="episode 0"):
        open_dataset(root)


def test_declared_size_that_is_wrong(root):
    edit_info(root, lambda info: info["features"]["action"].update(shape=[6]))
    with pytest.raises(DatasetError, match="'action'"):
        open_dataset(root)


def test_a_task_that_is_gone(root):
    rewrite(root / "meta/tasks.parquet", lambda table: table.slice(0, 0))
    with pytest.raises(DatasetError, match="no task 0"):
        open_dataset(root)


def test_unknown_names(root):
    with pytest.raises(DatasetError, match=r"Did you mean 'observation\.images\.image'"):
        open_dataset(root, cameras={"primary": "observation.images.imagee"})
    with pytest.raises(DatasetError, match=r"Did you mean 'observation\.state'"):
        open_dataset(root, state_key="observation.stat")
    with pytest.raises(ConfigError, match="cameras is empty"):
        open_dataset(root, cameras={})
    with pytest.raises(ConfigError, match="chunk_size"):
        open_dataset(root, chunk_size=0)
    with pytest.raises(DatasetError, match="no episode 9"):
        open_dataset(root).select([9])


def test_damaged_cache_is_built_again(root):
    cache = root.parent / "cache"
    before = sample(open_dataset(root), 0).images["primary"].copy()
    (frames,) = cache.glob("*/primary.frames")
    good = frames.read_bytes()
    for damage in (good[:-1], bytes(len(good)), b""):
        frames.write_bytes(damage)
        np.testing.assert_array_equal(sample(open_dataset(root), 0).images["primary"], before)
        assert frames.read_bytes() == good
    (frames.parent / "manifest.json").write_text("{")
    np.testing.assert_array_equal(sample(open_dataset(root), 0).images["primary"], before)
    assert [path.name for path in cache.iterdir()] == [frames.parent.name]  # nothing half-built remains


def test_cache_follows_the_content(root):
    open_dataset(root)
    shutil.rmtree(root)
    record(root, [episode(7, length=4, size=(64, 64))], size=(64, 64))
    np.testing.assert_array_equal(
        sample(open_dataset(root), 2).images["primary"], episode(7, 4, (64, 64)).images[PRIMARY][2]
    )


def test_failed_build_leaves_nothing(root):
    def fail(image):
        raise DatasetError("cannot")

    with pytest.raises(DatasetError, match="cannot"):
        open_dataset(root, transform=type(resize_to(8))("fail", fail))
    assert list((root.parent / "cache").iterdir()) == []


def test_foreign_layout(tmp_path):
    """Channels first, a fraction as frame rate, other cameras, a bimanual robot, a new row group per file."""
    table = features(state=14, action=14)
    table = {key: value for key, value in table.items() if not value.is_camera}
    table["observation.images.top"] = camera_feature(24, 32, "image")
    writer = LeRobotWriter(tmp_path / "d", fps=29.97, features=table)
    recorded = [episode(seed, length=5, state=14, action=14) for seed in range(2)]
    for one in recorded:
        writer.add_episode(RecordedEpisode(one.task, one.columns, {"observation.images.top": one.images[PRIMARY]}))
    writer.finalize()
    edit_info(
        tmp_path / "d",
        lambda info: info["features"]["observation.images.top"].update(
            shape=[3, 24, 32], names=["channels", "height", "width"]
        ),
    )
    rewrite(tmp_path / "d/data/chunk-000/file-000.parquet", lambda t: t.take(list(reversed(range(10)))))
    dataset = open_dataset(tmp_path / "d", chunk_size=25)
    assert dataset.cameras == ("top",)
    assert (dataset.state_size, dataset.action_size) == (14, 14)
    assert dataset.info.fps == 29.97
    assert dataset.info.features["observation.images.top"].image_size == (24, 32)
    found = sample(dataset, 6)
    np.testing.assert_array_equal(found.images["top"], recorded[1].images[PRIMARY][1])
    np.testing.assert_array_equal(found.actions[:4], recorded[1].columns["action"][1:])
    assert found.action_is_pad.sum() == 21
    renamed = open_dataset(tmp_path / "d", cameras={"primary": "observation.images.top"})
    assert renamed.cameras == ("primary",)


def test_statistics_in_training_space(root):
    dataset = open_dataset(root)
    actions = dataset.source.columns["action"]
    found = dataset.statistics(ActionConvention("open_is_negative"))
    assert found.action.mask.tolist() == [True] * 6 + [False]
    np.testing.assert_allclose(found.action.max[6], 1.0)  # open: every negative command
    np.testing.assert_allclose(found.action.mean[:6], actions[:, :6].mean(0, dtype=np.float64), atol=1e-7)
    assert dataset.statistics().action.mask.all()
    assert (found.num_transitions, found.num_trajectories) == (8, 2)


def test_a_view_travels_to_another_process(root):
    dataset = open_dataset(root)
    parcel = pickle.dumps(dataset.select([1]))
    assert len(parcel) < 64 * 64 * 3  # the path of the frames, not the frames
    copy = pickle.loads(parcel)  # noqa: TID251
    np.testing.assert_array_equal(sample(copy, 0).images["wrist"], sample(dataset, 4).images["wrist"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.columns.pop("action"), "lacks the declared feature 'action'"),
        (lambda e: e.columns.update(actions=e.columns["action"]), "Did you mean 'action'"),
        (lambda e: e.columns.update(action=e.columns["action"].astype(np.float64)), "must be float32"),
        (lambda e: e.columns.update(action=e.columns["action"][:, :6]), r"\[4, 7\]"),
        (lambda e: e.columns["action"].__setitem__((2, 3), np.nan), "row 2"),
        (lambda e: e.images[PRIMARY].pop(), "3 images for 4 rows"),
        (lambda e: e.images[PRIMARY].__setitem__(1, np.zeros((8, 8, 3), np.uint8)), "image 1"),
    ],
)
def test_writer_refuses(tmp_path, change, message):
    writer = LeRobotWriter(tmp_path / "d", fps=20, features=features())
    recorded = episode(0, length=4)
    change(recorded)
    with pytest.raises(DatasetError, match=message):
        writer.add_episode(recorded)
    writer.abort()
    assert not (tmp_path / "d").exists()


def test_two_writers_in_one_folder(tmp_path):
    first = LeRobotWriter(tmp_path / "d", fps=20, features=features())
    first.add_episode(episode(0))
    with pytest.raises(ConfigError, match="another process is writing a dataset"):
        LeRobotWriter(tmp_path / "d", fps=20, features=features(), overwrite=True)
    first.add_episode(episode(1))
    first.finalize()
    assert len(open_dataset(tmp_path / "d").episodes) == 2
    assert not list((tmp_path / "d").glob(".*"))


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    """Its README.md would have been replaced."""
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(DatasetError, match="is not empty"):
        LeRobotWriter(tmp_path, fps=20, features=features())
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_writer_that_cannot_begin_leaves_nothing(tmp_path):
    with pytest.raises(DatasetError, match="even sides"):
        LeRobotWriter(tmp_path / "d", fps=20, features=features(dtype="video", size=(23, 32)))
    assert not (tmp_path / "d").exists()


def test_what_a_killed_recording_left_is_no_part_of_the_next(tmp_path):
    (tmp_path / "d/.writing/data/chunk-000").mkdir(parents=True)
    (tmp_path / "d/.writing/data/chunk-000/file-007.parquet").write_text("half")
    record(tmp_path / "d", [episode(0)])
    assert not list((tmp_path / "d").rglob("file-007.parquet"))


def write_or_abort(root, kind):
    writer = LeRobotWriter(root, fps=20, features=features(dtype=kind))
    try:
        for seed in range(3):
            writer.add_episode(episode(seed, length=20))
        writer.finalize()
    except BaseException:
        writer.abort()
        raise


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("size", [0, 2000, 5000, 8000])
def test_a_full_disk_leaves_no_dataset(tmp_path, kind, size):
    """Wherever it comes: in the rows, in the pictures, at the end of a video."""
    with no_file_beyond(size), pytest.raises(StorageError, match="cannot write"):
        write_or_abort(tmp_path / "d", kind)
    assert not (tmp_path / "d").exists()


def test_writer_keeps_what_is_there(tmp_path):
    record(tmp_path / "d", [episode(0)])
    with pytest.raises(DatasetError, match="already"):
        LeRobotWriter(tmp_path / "d", fps=20, features=features())
    before = sample(open_dataset(tmp_path / "d"), 0).state
    writer = LeRobotWriter(tmp_path / "d", fps=20, features=features(), overwrite=True)
    writer.add_episode(episode(1))
    np.testing.assert_array_equal(sample(open_dataset(tmp_path / "d"), 0).state, before)
    writer.finalize()
    assert not np.array_equal(sample(open_dataset(tmp_path / "d"), 0).state, before)
    with pytest.raises(DatasetError, match="at least one episode"):
        LeRobotWriter(tmp_path / "e", fps=20, features=features()).finalize()
    with pytest.raises(DatasetError, match="timestamp"):
        LeRobotWriter(tmp_path / "f", fps=20, features={"timestamp": camera_feature(8, 8, "image")})
    with pytest.raises(DatasetError, match="even"):
        LeRobotWriter(tmp_path / "g", fps=20, features={"observation.images.a": camera_feature(9, 8, "video")})
