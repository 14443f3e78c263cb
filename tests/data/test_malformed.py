"""Datasets that are not what they say: every table and every entry of `meta/info.json` is read right or refused."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_recordings import DATA, PRIMARY, change, episode, errors, open_dataset, record
from typer.testing import CliRunner

from rdvla.cli.main import app
from rdvla.data.checks import check_dataset
from rdvla.data.lerobot_meta import INFO_PATH
from rdvla.errors import DatasetError

EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture
def root(tmp_path):
    record(tmp_path / "d", [episode(seed, length=6 + seed) for seed in range(3)])
    return tmp_path / "d"


class TestTables:
    def retyped(self, root, edit, kind):
        """Store the actions as another Arrow type."""
        table = pq.read_table(root / DATA)
        column = pa.array(edit(table["action"].to_pylist()), kind)
        pq.write_table(table.set_column(table.column_names.index("action"), "action", column), root / DATA)

    def declared(self, root, **entry):
        info = json.loads((root / INFO_PATH).read_text())
        info["features"]["action"] |= entry
        (root / INFO_PATH).write_text(json.dumps(info))

    def test_a_number_beyond_float32(self, root):
        """As every policy sees it, it is infinite."""
        self.declared(root, dtype="float64")
        self.retyped(root, lambda rows: [*rows[:4], [1e300, *rows[4][1:]], *rows[5:]], pa.list_(pa.float64(), 7))
        assert "more than float32 holds" in errors(root)[0].what
        with pytest.raises(DatasetError, match="episode 0, frame 4"):
            open_dataset(root)

    def test_rows_of_different_length_do_not_slip(self, root):
        """One value less here and one more there: as many as declared, but not where they belong."""

        def slip(rows):
            return [*rows[:4], rows[4][:-1], [*rows[5], 1.0], *rows[6:]]

        self.retyped(root, slip, pa.list_(pa.float32()))
        with pytest.raises(DatasetError, match="rows of 6 to 8 values"):
            open_dataset(root)

    def test_whole_numbers_are_not_cut_out_of_fractions(self, root):
        self.declared(root, dtype="int64")
        with pytest.raises(DatasetError, match="dtype 'int64' would cut short; declare 'float32'"):
            open_dataset(root)
        self.retyped(root, lambda rows: [[float(round(x)) for x in row] for row in rows], pa.list_(pa.float32(), 7))
        open_dataset(root)

    def test_an_empty_value_inside_a_row(self, root):
        change(root, "action", lambda rows: [*rows[:4], [None, *rows[4][1:]], *rows[5:]])
        with pytest.raises(DatasetError, match="'action' has 1 empty cells"):
            open_dataset(root)

    @pytest.mark.parametrize("key", ["episode_index", "length", "data/chunk_index", "data/file_index"])
    def test_an_empty_cell_in_the_episode_table(self, root, key):
        change(root, key, lambda rows: [rows[0], None, rows[2]], EPISODES)
        with pytest.raises(DatasetError, match=f"{key} is None"):
            open_dataset(root)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        *[("fps", fps, "fps is") for fps in (0, -5, float("nan"), float("inf"), 1e12, None, "20", [20], True)],
        *[("total_frames", total, "total_frames is") for total in (None, "3", -1, 2.5, float("inf"))],
        ("total_frames", 7, "says 7 frames, there are 21"),
        ("total_episodes", 0, "says 0 episodes"),
        *[("data_path", path, "not a template") for path in (None, 3, "data/{", "data/{episode_chunk}.parquet")],
        ("video_path", "videos/{key}.mp4", "not a template"),
        *[("features", value, "features is") for value in (None, [1], "x")],
    ],
)
def test_a_malformed_info(root, key, value, words):
    info = json.loads((root / INFO_PATH).read_text())
    (root / INFO_PATH).write_text(json.dumps(info | {key: value}))
    assert words in errors(root)[0].what
    with pytest.raises(DatasetError, match=words):
        open_dataset(root)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("x", "not a mapping"),
        ({"dtype": None}, "dtype is None"),
        ({"shape": None}, "shape is None"),
        ({"shape": "24x32"}, "not a list"),
        ({"shape": [24, 32]}, "height, width and channels"),
        ({"shape": [1, 24, 32, 3]}, "height, width and channels"),
        ({"info": ["x"]}, "info is"),
        ({"names": ["height", "width", "bgr"]}, "blue, green, red"),
        ({"names": ["b", "g", "r"]}, "blue, green, red"),
        ({"names": ["height", "width", ["Blue", "green", "red"]]}, "blue, green, red"),
        ({"names": {"channels": ["blue", "green", "red"]}}, "blue, green, red"),
        ({"names": ["height", "width", "B G R"]}, "blue, green, red"),
    ],
)
def test_a_malformed_feature(root, entry, words):
    info = json.loads((root / INFO_PATH).read_text())
    info["features"][PRIMARY] = info["features"][PRIMARY] | entry if isinstance(entry, dict) else entry
    (root / INFO_PATH).write_text(json.dumps(info))
    with pytest.raises(DatasetError, match=rf"feature '{PRIMARY}': .*{words}"):
        open_dataset(root)
    assert words in errors(root)[0].what


@pytest.mark.parametrize("dtype", ["foo", "string", "complex64", "datetime64", "object", "f4,(", ""])
def test_a_kind_of_number_that_there_is_not(root, dtype):
    TestTables().declared(root, dtype=dtype)
    (found,) = errors(root)
    assert found.feature == "action"
    assert f"dtype '{dtype}', which is no kind of number" in found.what
    with pytest.raises(DatasetError, match="which is no kind of number"):
        open_dataset(root)


@pytest.mark.parametrize("shape", [[], [0], [None], [-7], [70], [6]])
def test_a_shape_that_the_column_does_not_have(root, shape):
    TestTables().declared(root, shape=shape)
    (found,) = errors(root)
    assert "the two do not belong together" in found.what
    with pytest.raises(DatasetError, match="the two do not belong together"):
        open_dataset(root)


def test_fractions_are_not_rounded_to_a_coarser_kind(root):
    before = open_dataset(root).batch(range(6)).actions
    TestTables().declared(root, dtype="float16")
    assert (open_dataset(root).batch(range(6)).actions == before).all()


def test_a_feature_that_nobody_uses_may_be_odd(root):
    info = json.loads((root / INFO_PATH).read_text())
    info["features"]["extra"] = {"dtype": "foo", "shape": [1], "names": None}
    (root / INFO_PATH).write_text(json.dumps(info))
    (found,) = [finding for finding in check_dataset(root) if finding.severity == "warning"]
    assert (found.feature, found.what) == ("extra", "meta/info.json says dtype 'foo', which is no kind of number.")
    open_dataset(root)


@pytest.mark.parametrize("key", ["action", "observation.state"])
def test_a_feature_that_training_would_look_for(root, key):
    info = json.loads((root / INFO_PATH).read_text())
    info["features"][f"other.{key}"] = info["features"].pop(key)
    (root / INFO_PATH).write_text(json.dumps(info))
    assert any(f"there is no feature '{key}'" in finding.what for finding in check_dataset(root))


def test_a_picture_that_cannot_be_shown_is_a_finding(root, tmp_path):
    change(root, PRIMARY, lambda rows: [{"bytes": b"no picture", "path": None}, *rows[1:]])
    command = ["dataset", "inspect", str(root), "--output", str(tmp_path / "page.html")]
    seen = CliRunner().invoke(app, command, catch_exceptions=False)
    assert seen.exit_code == 1
    assert f"episode 0, frame 0, {PRIMARY} cannot be used" in seen.stdout
    assert "1 error" in seen.stdout
    assert not (tmp_path / "page.html").exists()
