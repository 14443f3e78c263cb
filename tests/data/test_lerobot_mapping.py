"""Datasets of other people: from the hub, with other keys, several state features, JPEG images."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_recordings import PRIMARY, STATE, episode, record
from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError
from PIL import Image

from one_sample import sample
from rdvla.data.images import decode_jpeg
from rdvla.data.lerobot_meta import FRESH_KEY, INFO_PATH, OLD_FRESH_KEY, Feature, camera_feature, vector_feature
from rdvla.data.lerobot_v3 import LeRobotDataset
from rdvla.data.lerobot_writer import LeRobotWriter, RecordedEpisode
from rdvla.errors import ConfigError, DatasetError

TOP = "observation.images.top"


def open_dataset(root, tmp_path, **options):
    return LeRobotDataset.open(root, **({"chunk_size": 3, "cache_dir": tmp_path / "cache"} | options))


def jpeg(seed, size=(16, 24)):
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    image = np.stack([(9 * x + 5 * y + 40 * c + seed) % 256 for c in range(3)], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture
def bimanual(tmp_path):
    """Two arms in features of their own, a torso as one number, JPEG images."""
    rng = np.random.default_rng(0)
    features = {
        TOP: camera_feature(16, 24, "image"),
        "state.left": vector_feature(["l0", "l1"]),
        "state.right": vector_feature(["r0", "r1", "r2"]),
        "state.torso": Feature("float64", (1,)),
        "actions": vector_feature(["a0", "a1", "a2", "a3"]),
    }
    writer = LeRobotWriter(tmp_path / "d", fps=30, features=features)
    columns = {
        "state.left": rng.normal(size=(5, 2)).astype(np.float32),
        "state.right": rng.normal(size=(5, 3)).astype(np.float32),
        "state.torso": rng.normal(size=5),
        "actions": rng.normal(size=(5, 4)).astype(np.float32),
    }
    files = [jpeg(seed) for seed in range(5)]
    writer.add_episode(RecordedEpisode("fold the towel", columns, {TOP: files}))
    writer.finalize()
    return tmp_path / "d", columns, files


def test_state_features_are_joined_in_the_order_given(bimanual, tmp_path):
    root, columns, _ = bimanual
    keys = ("state.right", "state.torso", "state.left")
    dataset = open_dataset(root, tmp_path, state_key=keys, action_key="actions")
    assert (dataset.state_size, dataset.action_size) == (6, 4)
    expected = np.column_stack([columns[key] for key in keys]).astype(np.float32)
    np.testing.assert_array_equal(dataset.batch(range(5)).state, expected)
    assert dataset.statistics().state.size == 6
    np.testing.assert_array_equal(sample(dataset, 1).actions, columns["actions"][1:4])


def test_jpeg_files_are_kept_and_decoded_with_the_fast_transform(bimanual, tmp_path):
    root, _, files = bimanual
    cells = pq.read_table(root / "data/chunk-000/file-000.parquet")[TOP].to_pylist()
    assert [cell["bytes"] for cell in cells] == files
    dataset = open_dataset(root, tmp_path, state_key="state.left", action_key="actions")
    for index, content in enumerate(files):
        np.testing.assert_array_equal(sample(dataset, index).images["top"], decode_jpeg(content))


def test_what_is_no_vector_is_refused(bimanual, tmp_path):
    root, *_ = bimanual
    with pytest.raises(DatasetError, match="dtype 'image'"):
        open_dataset(root, tmp_path, state_key=("state.left", TOP), action_key="actions")
    with pytest.raises(ConfigError, match="at least one"):
        open_dataset(root, tmp_path, state_key=(), action_key="actions")
    with pytest.raises(DatasetError, match="Did you mean 'actions'"):
        open_dataset(root, tmp_path, state_key="state.left", action_key="action")


def test_a_damaged_encoded_image_is_refused_before_writing(tmp_path):
    features = {TOP: camera_feature(16, 24, "image"), "action": vector_feature(["a"])}
    writer = LeRobotWriter(tmp_path / "d", fps=30, features=features)
    with pytest.raises(DatasetError, match="not a readable image"):
        writer.add_episode(RecordedEpisode("fold", {"action": np.zeros(1, np.float32)}, {TOP: [jpeg(0)[:40]]}))
    writer.abort()


def test_lists_of_lists_are_read(tmp_path):
    """A feature of shape [2, 4], as other tools write it."""
    record(tmp_path / "d", [episode(0)])
    path = tmp_path / "d/data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    values = np.stack(table[STATE].to_pylist())
    nested = pa.array(values.reshape(-1, 2, 4).tolist(), pa.list_(pa.list_(pa.float32())))
    pq.write_table(table.set_column(table.column_names.index(STATE), STATE, nested), path)
    np.testing.assert_array_equal(open_dataset(tmp_path / "d", tmp_path).batch(range(11)).state, values)


def test_a_hub_id_is_downloaded(tmp_path, monkeypatch):
    record(tmp_path / "d", [episode(0)])
    asked = {}

    def snapshot_download(name, **options):
        asked.update(name=name, **options)
        return str(tmp_path / "d")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    dataset = open_dataset("someone/cups@v3.0", tmp_path, cameras={"primary": PRIMARY})
    assert dataset.instructions == ("pick up the cup",)
    assert (asked["name"], asked["revision"], asked["repo_type"]) == ("someone/cups", "v3.0", "dataset")
    open_dataset("someone/cups", tmp_path, cameras={"primary": PRIMARY})
    assert asked["revision"] is None


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (LocalEntryNotFoundError("no connection"), "the hub cannot be reached.*copy the dataset"),
        (RevisionNotFoundError("gone", response=SimpleNamespace(headers={}, request=None)), "no revision 'v9'"),
        (OSError(28, "No space left on device"), "could not download 'someone/cups'"),
    ],
)
def test_what_the_hub_refuses_is_said(tmp_path, monkeypatch, problem, message):
    def snapshot_download(name, **options):
        raise problem

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(DatasetError, match=message):
        open_dataset("someone/cups@v9", tmp_path)


def test_offline_is_said_by_the_real_library(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DatasetError, match="its cache does not hold revision 'main'"):
        open_dataset("nobody-here/no-such-dataset", tmp_path)


def test_the_old_name_of_fresh_rows_is_still_read(tmp_path):
    record(tmp_path / "d", [episode(0, length=9, render_every=3)], fresh=True)
    new = open_dataset(tmp_path / "d", tmp_path)
    info = json.loads((tmp_path / "d" / INFO_PATH).read_text())
    info["features"][OLD_FRESH_KEY] = info["features"].pop(FRESH_KEY)
    (tmp_path / "d" / INFO_PATH).write_text(json.dumps(info))
    path = tmp_path / "d" / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.rename_columns([OLD_FRESH_KEY if n == FRESH_KEY else n for n in table.column_names]), path)
    old = open_dataset(tmp_path / "d", tmp_path)
    assert old.anchors.tolist() == new.anchors.tolist() == [0, 3, 6]
