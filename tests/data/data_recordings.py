"""Small datasets for the tests of this room."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rdvla.data.checks import check_dataset
from rdvla.data.lerobot_meta import FRESH_KEY, Feature, camera_feature, vector_feature
from rdvla.data.lerobot_v3 import LeRobotDataset
from rdvla.data.lerobot_writer import LeRobotWriter, RecordedEpisode

STATE = "observation.state"
PRIMARY = "observation.images.image"
WRIST = "observation.images.image2"
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def features(dtype="image", size=(24, 32), state=8, action=7, fresh=False):
    table = {
        PRIMARY: camera_feature(*size, dtype),
        WRIST: camera_feature(*size, dtype),
        STATE: vector_feature([f"s{i}" for i in range(state)]),
        "action": vector_feature([f"a{i}" for i in range(action)]),
    }
    return table | ({FRESH_KEY: Feature("bool", (1,))} if fresh else {})


def smooth_image(rng, size):
    """An image without fine detail, which video reproduces closely."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    wave = 90 * np.sin(x / 17 + y / 23 + rng.uniform(0, 6))
    return np.stack([127 + wave + shift for shift in rng.uniform(-15, 15, size=3)], axis=-1).astype(np.uint8)


def episode(seed, length=11, size=(24, 32), state=8, action=7, render_every=1, task="pick up the cup"):
    rng = np.random.default_rng(seed)
    count = -(-length // render_every)
    columns = {
        STATE: rng.normal(size=(length, state)).astype(np.float32),
        "action": rng.uniform(-1, 1, size=(length, action)).astype(np.float32),
    }
    image_index = None
    if render_every > 1:
        columns[FRESH_KEY] = np.arange(length) % render_every == 0
        image_index = np.arange(length) // render_every
    images = {key: [smooth_image(rng, size) for _ in range(count)] for key in (PRIMARY, WRIST)}
    return RecordedEpisode(task, columns, images, image_index)


def record(root, episodes, **kwargs):
    options = {key: kwargs.pop(key) for key in ("fps", "data_file_mb", "video_file_mb", "overwrite") if key in kwargs}
    writer = LeRobotWriter(root, **({"fps": 20} | options), features=features(**kwargs), robot_type="panda")
    for recorded in episodes:
        writer.add_episode(recorded)
    return writer.finalize("# A dataset")


def open_dataset(root, **options):
    return LeRobotDataset.open(root, **({"chunk_size": 4, "cache_dir": root.parent / "cache"} | options))


def change(root, key, edit, path=DATA):
    """Replace a column of a data file by what `edit` makes of its Python values."""
    table = pq.read_table(root / path)
    values = edit(table[key].to_pylist())
    place = table.column_names.index(key)
    pq.write_table(table.set_column(place, key, pa.array(values, table.schema.field(key).type)), root / path)


def errors(root):
    return [finding for finding in check_dataset(root) if finding.severity == "error"]
