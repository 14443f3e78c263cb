"""LeRobotDataset v2.1 becomes v3.0: every number and every image."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_recordings import PRIMARY, STATE, WRIST, episode, record
from typer.testing import CliRunner

from rdvla.cli.main import app
from rdvla.data.lerobot_meta import DatasetInfo
from rdvla.data.lerobot_v3 import LeRobotDataset
from rdvla.errors import ConfigError, DatasetError
from rdvla.hub import DATASET


def write_v21(root, dtype):
    """Two episodes of 5 and 6 frames: what v3.0 holds, one file per episode and JSON lines, as v2.1 has it."""
    for number in range(2):
        part = root.parent / f"part{number}"
        record(part, [episode(number, length=5 + number, size=(64, 64))], dtype=dtype, size=(64, 64))
        table = pq.read_table(part / "data/chunk-000/file-000.parquet")
        column = table.column_names.index("episode_index")
        table = table.set_column(column, "episode_index", pa.array([number] * len(table)))
        path = root / f"data/chunk-000/episode_{number:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        for key in (PRIMARY, WRIST) if dtype == "video" else ():
            video = root / f"videos/chunk-000/{key}/episode_{number:06d}.mp4"
            video.parent.mkdir(parents=True, exist_ok=True)
            video.write_bytes((part / f"videos/{key}/chunk-000/file-000.mp4").read_bytes())
    info = json.loads((part / "meta/info.json").read_text()) | {
        "codebase_version": "v2.1",
        "total_episodes": 2,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (root / "meta").mkdir()
    (root / "meta/info.json").write_text(json.dumps(info))
    rows = [{"episode_index": n, "tasks": ["pick up the cup"], "length": 5 + n} for n in range(2)]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "pick up the cup"}\n')
    return root


def rewrite(path, old, new):
    path.write_text(path.read_text().replace(old, new))


def turn_round(path):
    table = pq.read_table(path)
    pq.write_table(table.take(list(reversed(range(len(table))))), path)


def convert(*arguments):
    return CliRunner().invoke(app, ["dataset", "convert", *map(str, arguments)])


def parts(root):
    return [LeRobotDataset.open(root.parent / f"part{n}", chunk_size=2, cache_dir=root.parent / "c") for n in range(2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fps", 30), "--fps 30.0: a LeRobotDataset v2.1 says that by itself"),
        (("--split", "val"), "--split val: a LeRobotDataset v2.1"),
        (("--camera-size", 64), "--camera-size belongs to --regenerate"),
    ],
)
def test_options_that_mean_nothing_to_it_are_refused(tmp_path, options, message):
    found = convert(write_v21(tmp_path / "old", "image"), tmp_path / "new", *options).exception
    assert isinstance(found, ConfigError)
    assert message in str(found)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("dtype", ["image", "video"])
def test_every_number_and_image_comes_over(tmp_path, dtype):
    root = write_v21(tmp_path / "old", dtype)
    result = convert(root, tmp_path / "new")
    assert result.exit_code == 0, result.output
    new = LeRobotDataset.open(tmp_path / "new", chunk_size=2, cache_dir=tmp_path / "c").batch(range(11))
    for name in ("state", "actions"):
        expected = np.concatenate([getattr(part.batch(range(len(part))), name) for part in parts(root)])
        np.testing.assert_array_equal(getattr(new, name), expected)
    for camera, images in new.images.items():
        expected = np.concatenate([part.batch(range(len(part))).images[camera] for part in parts(root)])
        np.testing.assert_array_equal(images, expected)
    assert set(new.instructions) == {"pick up the cup"}


def test_a_folder_that_holds_something_else_is_told_what_there_is(tmp_path):
    (tmp_path / "notes.txt").touch()
    result = convert(tmp_path, tmp_path / "new")
    assert isinstance(result.exception, DatasetError)
    assert all(kind in str(result.exception) for kind in ("LeRobotDataset v2.1", "RLDS", "CALVIN", "LIBERO"))


def test_from_the_hub(tmp_path, monkeypatch):
    root, asked = write_v21(tmp_path / "old", "image"), []
    monkeypatch.setattr("rdvla.hub._download", lambda *about: asked.append(about) or root)
    result = convert("me/old@v2.1", tmp_path / "new")
    assert result.exit_code == 0, result.output
    assert asked == [("me/old", DATASET, "v2.1", {})]
    assert DatasetInfo.load(tmp_path / "new").total_frames == 11
    assert (tmp_path / "new/README.md").read_text().startswith("# me/old\n")


def test_what_needs_no_conversion_or_is_not_there(tmp_path):
    write_v21(tmp_path / "old", "image")
    for source, message in (
        (tmp_path / "part0", "is a LeRobotDataset v3.0 already"),
        (tmp_path / "nowhere", "no dataset directory at"),
        ("", "no dataset directory at ''"),
    ):
        result = convert(source, tmp_path / "new")
        assert isinstance(result.exception, DatasetError)
        assert message in str(result.exception)


def test_without_the_columns_that_say_where_a_row_belongs(tmp_path):
    """As other people's converters write it."""
    root = write_v21(tmp_path / "old", "image")
    for path in sorted((root / "data/chunk-000").glob("*.parquet")):
        pq.write_table(pq.read_table(path).drop_columns(["frame_index", "index"]), path)
    assert convert(root, tmp_path / "new").exit_code == 0
    assert DatasetInfo.load(tmp_path / "new").total_frames == 11


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "data/chunk-000/episode_000001.parquet").unlink(), "is missing"),
        (lambda root: (root / "meta/episodes.jsonl").write_text("{"), "cannot be read"),
        (lambda root: (root / "meta/tasks.jsonl").write_text('{"task_index": 3, "task": "x"}\n'), "exactly one"),
        (lambda root: rewrite(root / "meta/episodes.jsonl", '"length": 5', '"length": 9'), "has 5 rows"),
        (lambda root: rewrite(root / "meta/episodes.jsonl", ', "length": 5', ""), "KeyError('length')"),
        (lambda root: rewrite(root / "meta/episodes.jsonl", '"episode_index": 1', '"episode_index": 2'), "promises"),
        (
            lambda root: (root / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 5}\n'),
            "has 1, and not",
        ),
        (lambda root: turn_round(root / "data/chunk-000/episode_000001.parquet"), "has frame_index 5 in row 0"),
        (lambda root: (root / "meta/tasks.jsonl").write_text("version https://git-lfs.github.com/spec/v1\n"), "lfs"),
    ],
)
def test_what_cannot_be_converted_leaves_nothing(tmp_path, spoil, message):
    root = write_v21(tmp_path / "old", "image")
    spoil(root)
    result = convert(root, tmp_path / "new")
    assert isinstance(result.exception, DatasetError)
    assert message in str(result.exception)
    assert not (tmp_path / "new").exists()


def test_a_feature_that_is_no_row_of_numbers_is_refused(tmp_path):
    root = write_v21(tmp_path / "old", "image")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][STATE]["shape"] = [2, 4]
    (root / "meta/info.json").write_text(json.dumps(info))
    assert f"feature '{STATE}' is float32 [2, 4]" in str(convert(root, tmp_path / "new").exception)


def test_half_precision_becomes_single(tmp_path):
    old = write_v21(tmp_path / "old", "image")
    info = json.loads((old / "meta/info.json").read_text())
    info["features"][STATE]["dtype"] = "float16"
    (old / "meta/info.json").write_text(json.dumps(info))
    for path in sorted(old.glob("data/*/*.parquet")):
        table = pq.read_table(path)
        column = pa.array([list(np.float16(row)) for row in table[STATE].to_pylist()], pa.list_(pa.float16()))
        pq.write_table(table.set_column(table.column_names.index(STATE), STATE, column), path)
    result = convert(old, tmp_path / "new")
    assert result.exit_code == 0, result.output
    assert DatasetInfo.load(tmp_path / "new").features[STATE].dtype == "float32"
