"""Every file of v3.0, field by field, read with pyarrow and json only."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_recordings import PRIMARY, STATE, WRIST, episode, record

INDEX = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
STATISTICS = {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}


@pytest.fixture(scope="module", params=["image", "video"])
def recorded(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("schema") / request.param
    episodes = [
        episode(0, length=6, size=(64, 80), render_every=2),
        episode(1, length=5, size=(64, 80), render_every=2, task="open the drawer"),
        episode(2, length=4, size=(64, 80), render_every=2),
    ]
    record(root, episodes, dtype=request.param, size=(64, 80), fresh=True)
    return root, episodes, request.param


def test_files(recorded):
    root, _, dtype = recorded
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    videos = {f"videos/{key}/chunk-000/file-000.mp4" for key in (PRIMARY, WRIST)} if dtype == "video" else set()
    assert files == videos | {
        "README.md",
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
    }


def test_info(recorded):
    root, _, dtype = recorded
    info = json.loads((root / "meta/info.json").read_text())
    features = info.pop("features")
    assert info == {
        "codebase_version": "v3.0",
        "robot_type": "panda",
        "total_episodes": 3,
        "total_frames": 15,
        "total_tasks": 2,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": 20,
        "splits": {"train": "0:3"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if dtype == "video"
        else None,
    }
    assert set(features) == {PRIMARY, WRIST, STATE, "action", "frame_is_fresh", *INDEX}
    assert features["action"] == {"dtype": "float32", "shape": [7], "names": [f"a{i}" for i in range(7)]}
    assert features["frame_is_fresh"] == {"dtype": "bool", "shape": [1], "names": None}
    for key, kind in INDEX.items():
        assert features[key] == {"dtype": kind, "shape": [1], "names": None}
    camera = dict(features[PRIMARY])
    details = camera.pop("info", None)
    assert camera == {"dtype": dtype, "shape": [64, 80, 3], "names": ["height", "width", "channels"]}
    if dtype == "video":
        assert details["video.codec"] in ("av1", "h264")
        expected = {"video.height": 64, "video.width": 80, "video.pix_fmt": "yuv420p", "video.fps": 20, "video.g": 2}
        assert expected.items() <= details.items()
        assert {"video.crf", "video.preset", "video.fast_decode", "video.channels", "has_audio"} <= set(details)
    else:
        assert details is None


def test_data(recorded):
    root, episodes, dtype = recorded
    table = pq.read_table(root / "data/chunk-000/file-000.parquet")
    kinds = {field.name: field.type for field in table.schema}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    assert kinds == {
        **({PRIMARY: image, WRIST: image} if dtype == "image" else {}),
        STATE: pa.list_(pa.float32(), 8),
        "action": pa.list_(pa.float32(), 7),
        "frame_is_fresh": pa.bool_(),
        **{key: pa.type_for_alias(kind) for key, kind in INDEX.items()},
    }
    assert table["index"].to_pylist() == list(range(15))
    assert table["episode_index"].to_pylist() == [0] * 6 + [1] * 5 + [2] * 4
    assert table["frame_index"].to_pylist() == [*range(6), *range(5), *range(4)]
    assert table["task_index"].to_pylist() == [0] * 6 + [1] * 5 + [0] * 4
    frames = np.array(table["frame_index"])
    np.testing.assert_array_equal(np.array(table["timestamp"]), (frames / 20).astype(np.float32))
    assert table["frame_is_fresh"].to_pylist() == (frames % 2 == 0).tolist()
    actions = np.concatenate([e.columns["action"] for e in episodes])
    np.testing.assert_array_equal(np.array(table["action"].to_pylist(), np.float32), actions)
    file = pq.ParquetFile(root / "data/chunk-000/file-000.parquet")
    assert file.num_row_groups == 3
    assert file.metadata.row_group(0).column(0).compression == "SNAPPY"
    if dtype == "image":
        cells = table[PRIMARY].to_pylist()
        assert cells[0] == cells[1] != cells[2]
        assert cells[0]["bytes"].startswith(b"\x89PNG")


def test_tasks(recorded):
    table = pq.read_table(recorded[0] / "meta/tasks.parquet")
    pandas = json.loads(table.schema.metadata[b"pandas"])
    assert pandas["index_columns"] == ["task"]
    assert table["task_index"].to_pylist() == [0, 1]
    assert table["task"].to_pylist() == ["pick up the cup", "open the drawer"]


def test_tasks_with_pandas(recorded):
    pandas = pytest.importorskip("pandas", reason="pandas is not a dependency of rdvla")
    frame = pandas.read_parquet(recorded[0] / "meta/tasks.parquet")
    assert frame.index.name == "task"
    assert frame.iloc[1].name == "open the drawer"
    assert frame.loc["pick up the cup", "task_index"] == 0


def test_episodes(recorded):
    root, _, dtype = recorded
    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["episode_index"] for row in rows] == [0, 1, 2]
    assert [row["tasks"] for row in rows] == [["pick up the cup"], ["open the drawer"], ["pick up the cup"]]
    assert [row["length"] for row in rows] == [6, 5, 4]
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows] == [(0, 6), (6, 11), (11, 15)]
    for row in rows:
        assert row["data/chunk_index"] == row["data/file_index"] == 0
        assert row["meta/episodes/chunk_index"] == row["meta/episodes/file_index"] == 0
        statistics = {name for name in row if name.startswith("stats/")}
        features = (PRIMARY, WRIST, STATE, "action", "frame_is_fresh", *INDEX)
        assert statistics == {f"stats/{key}/{name}" for key in features for name in STATISTICS}
        assert row["stats/action/count"] == [row["length"]]
        assert np.shape(row[f"stats/{PRIMARY}/mean"]) == (3, 1, 1)
    if dtype == "video":
        spans = [(row[f"videos/{PRIMARY}/from_timestamp"], row[f"videos/{PRIMARY}/to_timestamp"]) for row in rows]
        np.testing.assert_allclose(spans, [(0, 0.3), (0.3, 0.55), (0.55, 0.75)])
        assert rows[0][f"videos/{WRIST}/chunk_index"] == rows[0][f"videos/{WRIST}/file_index"] == 0


def test_statistics_are_exact(recorded):
    root, episodes, _ = recorded
    found = json.loads((root / "meta/stats.json").read_text())
    for key in (STATE, "action"):
        values = np.concatenate([e.columns[key] for e in episodes]).astype(np.float64)
        assert set(found[key]) == STATISTICS
        assert found[key]["count"] == [15]
        expected = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        expected |= {f"q{level:02d}": np.quantile(values, level / 100, axis=0) for level in (1, 10, 50, 90, 99)}
        for name, numbers in expected.items():
            np.testing.assert_allclose(found[key][name], numbers, atol=1e-12)


def test_image_statistics_are_exact(recorded):
    root, episodes, _ = recorded
    found = json.loads((root / "meta/stats.json").read_text())[PRIMARY]
    shown = np.stack([e.images[PRIMARY][row // 2] for e in episodes for row in range(e.length)]) / 255.0
    pixels = shown.reshape(-1, 3)
    expected = {"min": pixels.min(0), "max": pixels.max(0), "mean": pixels.mean(0), "std": pixels.std(0)}
    expected |= {f"q{level:02d}": np.quantile(pixels, level / 100, axis=0) for level in (1, 10, 50, 90, 99)}
    for name, numbers in expected.items():
        assert np.shape(found[name]) == (3, 1, 1)
        np.testing.assert_allclose(np.ravel(found[name]), numbers, atol=1e-9)
    assert found["count"] == [15]
