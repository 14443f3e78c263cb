"""Whatever is in a dataset's files: it is read right or refused, and `check` and training agree about it.

A good dataset is damaged in one or two places: metadata, tables, pictures, sentences, numbers, files.
"""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_recordings import DATA, EPISODES, PRIMARY, STATE, change, episode, errors, open_dataset, record
from hypothesis import given, note, settings
from hypothesis import strategies as st

from rdvla.data.lerobot_meta import INFO_PATH, TASKS_PATH
from rdvla.data.summary import summarise
from rdvla.errors import DatasetError
from rdvla.types import ActionConvention

LENGTHS = (3, 1, 2)
NONE = ActionConvention("none")

SCALARS = st.sampled_from([None, True, 0, -1, 3, 2.5, float("nan"), 1e300, "", "x", "float32", [], [3], {}, {"a": 1}])
DTYPES = st.sampled_from(
    ["float16", "float64", "int8", "int64", "uint8", "bool", "string", "image", "foo", "complex64"]
)
SHAPES = st.lists(st.sampled_from([None, -1, 0, 1, 2, 6, 7, 8]), max_size=3)
NUMBERS = st.sampled_from([0.0, -3.5, 1e6, 1e39, float("nan"), float("inf")])


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Images in the tables, and a second dataset with videos."""
    roots = {}
    for storage in ("image", "video"):
        roots[storage] = tmp_path_factory.mktemp("good") / storage
        episodes = [episode(seed, length=length, size=(8, 8)) for seed, length in enumerate(LENGTHS)]
        record(roots[storage], episodes, size=(8, 8), dtype=storage)
    return roots


def info_of(root):
    return json.loads((root / INFO_PATH).read_text())


def write_info(root, info):
    (root / INFO_PATH).write_text(json.dumps(info))


def info_entry(data, root):
    info = info_of(root)
    info[data.draw(st.sampled_from(sorted(info)), "entry")] = data.draw(SCALARS, "value")
    write_info(root, info)


def feature_entry(data, root):
    info = info_of(root)
    feature = info["features"][data.draw(st.sampled_from(sorted(info["features"])), "feature")]
    name = data.draw(st.sampled_from(["dtype", "shape", "names", "info"]), "name")
    feature[name] = data.draw({"dtype": DTYPES, "shape": SHAPES}.get(name, SCALARS), "value")
    write_info(root, info)


def feature_without_a_column(data, root):
    info = info_of(root)
    info["features"]["extra"] = {"dtype": data.draw(DTYPES, "dtype"), "shape": data.draw(SHAPES, "shape")}
    write_info(root, info)


def column_gone(data, root):
    path = root / data.draw(st.sampled_from([DATA, EPISODES, TASKS_PATH]), "table")
    table = pq.read_table(path)
    pq.write_table(table.drop_columns([data.draw(st.sampled_from(table.column_names), "column")]), path)


def cell(data, root):
    """One cell of any table becomes null, or another number."""
    path = data.draw(st.sampled_from([DATA, EPISODES]), "table")
    table = pq.read_table(root / path)
    key = data.draw(st.sampled_from([name for name in table.column_names if not name.startswith("stats/")]), "column")
    row = data.draw(st.integers(0, len(table) - 1), "row")
    kind = table.schema.field(key).type
    value = None
    if pa.types.is_integer(kind):
        value = data.draw(st.sampled_from([None, -1, 0, 1, 7]), "value")
    elif pa.types.is_floating(kind):
        value = data.draw(st.none() | st.sampled_from([0.0, 0.05, -1.0, 1e9, float("nan")]), "value")
    change(root, key, lambda rows: [value if n == row else each for n, each in enumerate(rows)], path)


def number(data, root):
    key = data.draw(st.sampled_from([STATE, "action"]), "feature")
    row, value = data.draw(st.integers(0, sum(LENGTHS) - 1), "row"), data.draw(NUMBERS, "value")
    change(root, key, lambda rows: [[value, *each[1:]] if n == row else each for n, each in enumerate(rows)])


def sentence(data, root):
    table = pq.read_table(root / TASKS_PATH)
    words = pa.array([data.draw(st.sampled_from([None, "", " ", "again", "é"]), "words")], pa.string())
    pq.write_table(table.set_column(table.column_names.index("task"), "task", words), root / TASKS_PATH)


def gap(data, root):
    """Episodes numbered 0, 3, 7: allowed, if both tables say so."""
    numbers = {0: 0, 1: 3, 2: 7}
    for path in data.draw(st.sampled_from([(DATA, EPISODES), (DATA,), (EPISODES,)]), "tables"):
        change(root, "episode_index", lambda rows: [numbers.get(row, row) for row in rows], path)


def timestamps(data, root):
    late, jitter = data.draw(st.sampled_from([0.0, 0.01, 0.5, 1e9])), data.draw(st.sampled_from([0.0, 0.001, 0.04]))
    change(root, "timestamp", lambda rows: [row + late + jitter * (n % 2) for n, row in enumerate(rows)])


def rows(data, root):
    """A row is lost, or there twice."""
    path = root / data.draw(st.sampled_from([DATA, EPISODES]), "table")
    table = pq.read_table(path)
    row = data.draw(st.integers(0, len(table) - 1), "row")
    kept = [n for n in range(len(table)) if n != row] if data.draw(st.booleans(), "lost") else [*range(len(table)), row]
    pq.write_table(table.take(kept), path)


def file(data, root):
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name not in ("README.md", "stats.json"))
    path = data.draw(st.sampled_from(files), "file")
    content = path.read_bytes()
    end = data.draw(st.integers(0, len(content) - 1), "bytes")
    path.unlink() if data.draw(st.booleans(), "gone") else path.write_bytes(content[:end])


DAMAGES = (
    info_entry, feature_entry, feature_without_a_column, column_gone, cell, number, sentence, gap, timestamps, rows,
    file,
)  # fmt: skip


def stored(root, key):
    return np.array(pq.read_table(root / DATA)[key].to_pylist(), np.float32)


@settings(max_examples=60)
@given(data=st.data())
def test_read_right_or_refused_and_nobody_is_surprised_later(good, tmp_path_factory, data):
    storage = data.draw(st.sampled_from(["image", "video"]), "storage")
    root = shutil.copytree(good[storage], tmp_path_factory.mktemp("any") / "d")
    try:
        for damage in data.draw(st.lists(st.sampled_from(DAMAGES), min_size=1, max_size=2), "damages"):
            damage(data, root)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, IndexError):
        return  # the first damage leaves nothing for the second
    wrong = [str(finding) for finding in errors(root)]
    note(f"check: {wrong}")
    batch, refusal = trained_on(root)
    note(f"training: {refusal}")
    assert bool(wrong) or refusal is None, "training refuses what check found nothing in"
    if batch is None:
        return
    order = np.argsort(stored(root, "episode_index"), kind="stable")
    for key, found in ((STATE, batch.state), ("action", batch.actions[:, 0])):
        assert (found == stored(root, key)[order]).all(), key
    assert batch.images["primary"].shape == (len(order), 8, 8, 3)
    assert all(words.strip() for words in batch.instructions)
    if not wrong:
        assert summarise(root, num_samples=2).lengths.sum() == len(order)


def trained_on(root):
    """Return all samples, or why training refuses the dataset."""
    try:
        dataset = open_dataset(root)
        dataset.look_through(NONE)
        dataset.statistics(NONE)
        return dataset.batch(range(len(dataset))), None
    except DatasetError as error:
        return None, error
    finally:
        shutil.rmtree(root.parent / "cache", ignore_errors=True)


def test_the_damages_do_damage(good, tmp_path):
    """A good dataset has no error, so that the agreement above says something."""
    for storage, original in good.items():
        root = shutil.copytree(original, tmp_path / storage)
        assert errors(root) == []
        change(root, "action", lambda rows: [[float("nan"), *rows[0][1:]], *rows[1:]])
        assert errors(root)
        assert PRIMARY in info_of(root)["features"]
