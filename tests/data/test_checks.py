"""Nothing silently wrong: what people's datasets have in them is read right or refused, and the place is named."""

import io
import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_recordings import DATA, EPISODES, PRIMARY, STATE, WRIST, change, episode, errors, open_dataset, record
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from typer.testing import CliRunner

from rdvla.cli.main import app
from rdvla.data.checks import check_dataset, verdict
from rdvla.data.conventions import about_actions, contradiction, describe_gripper, fitting_conventions
from rdvla.data.images import decode_image
from rdvla.data.lerobot_meta import FRESH_KEY, INFO_PATH, STATS_PATH, TASKS_PATH, Feature
from rdvla.data.lerobot_tables import IMAGE_TYPE
from rdvla.data.stats import NormStats, rarely_changing
from rdvla.data.summary import summarise
from rdvla.embodiment import LIBERO
from rdvla.errors import DatasetError
from rdvla.types import ActionConvention


@pytest.fixture
def root(tmp_path):
    record(tmp_path / "d", [episode(seed, length=6 + seed) for seed in range(3)])
    return tmp_path / "d"


def test_a_good_dataset_has_no_error(root):
    assert errors(root) == []
    assert verdict(check_dataset(root)) == "1 note"
    assert verdict([]) == "fine"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite(root, value):
    """In the second episode, third frame; also when nobody would train on it because the episode is held out."""

    def spoil(rows):
        rows[6 + 2][1] = value
        return rows

    change(root, "action", spoil)
    (found,) = errors(root)
    assert (found.feature, found.episode, found.frame) == ("action", 1, 2)
    with pytest.raises(DatasetError, match=r"feature action, episode 1, frame 2: entry 1 is (nan|inf)"):
        open_dataset(root)


def test_an_absurd_jump_is_said(root):
    change(root, STATE, lambda rows: [*rows[:3], [1e5, *rows[3][1:]], *rows[4:]])
    (found,) = [finding for finding in check_dataset(root) if finding.severity == "warning"]
    assert (found.feature, found.episode, found.frame) == (STATE, 0, 3)


@pytest.mark.parametrize("sentence", [None, "", "  "])
def test_a_task_without_a_sentence(root, sentence):
    table = pq.read_table(root / TASKS_PATH)
    pq.write_table(table.set_column(1, "task", pa.array([sentence], pa.string())), root / TASKS_PATH)
    assert "has no sentence" in errors(root)[0].what
    with pytest.raises(DatasetError, match=r"task 0 has no sentence"):
        open_dataset(root)


def test_an_episode_without_a_frame(root):
    info = json.loads((root / INFO_PATH).read_text())
    (root / INFO_PATH).write_text(json.dumps(info | {"total_episodes": 4}))
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    pq.write_table(pa.Table.from_pylist([*rows, rows[-1] | {"episode_index": 3, "length": 0}], table.schema), path)
    with pytest.raises(DatasetError, match="episode 3: the episode has no frame"):
        open_dataset(root)
    assert errors(root)[0].episode == 3


def png(array, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, "PNG")
    return buffer.getvalue()


class TestPictures:
    def test_depth_is_refused_not_clipped(self, root):
        depth = png((np.arange(24 * 32).reshape(24, 32) * 80).astype(np.uint16))
        change(root, PRIMARY, lambda cells: [{"bytes": depth, "path": None} for _ in cells])
        with pytest.raises(DatasetError, match="no 8-bit picture"):
            open_dataset(root)
        assert {(found.feature, found.episode) for found in errors(root)} == {(PRIMARY, number) for number in range(3)}

    def test_a_declared_depth_map_is_no_camera(self, root):
        info = json.loads((root / INFO_PATH).read_text())
        info["features"][WRIST]["info"] = {"is_depth_map": True}
        (root / INFO_PATH).write_text(json.dumps(info))
        assert open_dataset(root).cameras == ("primary",)
        with pytest.raises(DatasetError, match="declared as depth"):
            open_dataset(root, cameras={"wrist": WRIST})

    def test_a_missing_picture_is_named(self, root):
        change(root, WRIST, lambda cells: [*cells[:4], None, *cells[5:]])
        with pytest.raises(DatasetError, match=r"episode 0, frame 4, .*image2 cannot be used: the cell is empty"):
            open_dataset(root)

    def test_eight_bits_in_every_form(self):
        grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
        colour = np.stack([grey, grey[::-1], grey.T], axis=-1)
        assert (decode_image(png(grey)) == grey[..., None]).all()
        assert (decode_image(png(colour)) == colour).all()
        clear = np.concatenate([colour, np.zeros((16, 16, 1), np.uint8)], axis=-1)
        assert (decode_image(png(clear)) == colour).all(), "an alpha channel changes no colour"
        palette = Image.fromarray(grey, "L").convert("P")
        buffer = io.BytesIO()
        palette.save(buffer, "PNG")
        assert (decode_image(buffer.getvalue()) == grey[..., None]).all()

    @pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
    def test_sixteen_bits_are_refused_in_colours_too(self, kind, channels):
        """Pillow reads 16-bit colours as 8-bit ones without a word."""
        rows = b"".join(b"\0" + np.full((4, channels), 40_000, ">u2").tobytes() for _ in range(4))
        header = struct.pack(">IIBBBBB", 4, 4, 16, kind, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
        parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
        with pytest.raises(DatasetError, match="no 8-bit picture"):
            decode_image(b"\x89PNG\r\n\x1a\n" + b"".join(parts))

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "its 0 bytes are no image file"),
            (b"no picture", "its 10 bytes are no image file"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        ],
    )
    def test_bytes_that_are_no_picture(self, content, reason):
        with pytest.raises(DatasetError, match=reason):
            decode_image(content)

    @pytest.mark.parametrize(
        ("column", "reason"),
        [
            (pa.array([b"png"] * 21), "holds a bytes"),
            (pa.array(["a.png"] * 21), "holds a str"),
            (pa.array([[0, 1]] * 21), "holds a list"),
            (pa.array([{"bytes": None, "path": None}] * 21, IMAGE_TYPE), "neither bytes nor a path"),
            (pa.array([{"bytes": None, "path": "images/gone.png"}] * 21, IMAGE_TYPE), "No such file"),
        ],
    )
    def test_cells_that_hold_something_else(self, root, column, reason):
        table = pq.read_table(root / DATA)
        pq.write_table(table.set_column(table.column_names.index(PRIMARY), PRIMARY, column), root / DATA)
        assert f"episode 0, frame 0, {PRIMARY} cannot be used: " in str(errors(root)[0])
        assert reason in errors(root)[0].what

    def test_a_picture_of_another_size_than_declared(self, root):
        turned = png(np.zeros((32, 24, 3), np.uint8))
        change(root, PRIMARY, lambda cells: [*cells[:8], {"bytes": turned, "path": None}, *cells[9:]])
        (found,) = [finding for finding in check_dataset(root) if finding.severity == "warning"]
        assert (found.feature, found.episode) == (PRIMARY, 1)
        assert "pictures are 24x32, 32x24, meta/info.json says 24x32" in found.what

    def test_floats_are_refused(self):
        buffer = io.BytesIO()
        Image.fromarray(np.ones((4, 4), np.float32)).save(buffer, "TIFF")
        with pytest.raises(DatasetError, match="mode F"):
            decode_image(buffer.getvalue())


@pytest.mark.parametrize(
    ("names", "shape", "size"),
    [
        (["height", "width", "rgb"], (24, 32, 3), (24, 32)),
        (["h", "w", "c"], (24, 32, 3), (24, 32)),
        (None, (3, 24, 32), (24, 32)),
        (["channels", "height", "width"], (3, 24, 3), (24, 3)),
        (["height", "width", "channels"], (3, 24, 3), (3, 24)),
    ],
)
def test_which_axis_is_which(names, shape, size):
    assert Feature("image", shape, names).image_size == size


class TestGrippers:
    @pytest.mark.parametrize(
        ("values", "fits"),
        [
            ([-1, 1, 1], 3),
            ([-0.3, 0.9], 3),
            ([1, 1], 3),
            ([0, 1], 1),
            ([0, 0], 1),
            ([0, 37.5, 100], 1),
            ([-1.2, 1.0], 1),
            ([-0.04, 0.04], 1),
            ([-1, -1], 3),
        ],
    )
    def test_what_the_values_allow(self, values, fits):
        assert len(fitting_conventions(np.float32(values))) == fits

    @given(arrays.arrays(np.float32, st.integers(1, 30), elements=st.floats(-2, 2, width=32)))
    def test_none_always_fits_and_a_contradiction_says_what_does(self, values):
        assert contradiction(values, "none") is None
        for gripper in ("open_is_negative", "open_is_positive"):
            reason = contradiction(values, gripper)
            assert (reason is None) == (gripper in fitting_conventions(values))
            assert reason is None or "data.gripper" in reason
        assert describe_gripper(values)

    @pytest.mark.parametrize(
        ("last", "gripper", "severity", "words"),
        [
            ([-1, 1], None, "note", "data.gripper can be 'open_is_negative'"),
            ([-1, 1], "open_is_negative", "note", "taken as 'open_is_negative'"),
            ([1, 1], "open_is_negative", "warning", "never changes"),
            ([-0.9, 0.3], "open_is_positive", "warning", "has values between"),
            ([-0.9, 0.3], "none", "note", "taken as 'none'"),
        ],
    )
    def test_what_the_last_entry_is_taken_for_is_said(self, last, gripper, severity, words):
        actions = np.stack([np.zeros(2), last], axis=1).astype(np.float32)
        (found,) = about_actions(actions, gripper)
        assert found.severity == severity
        assert words in found.what

    def test_a_convention_that_training_would_refuse_is_not_offered(self):
        actions = np.float32([[0, -1], [0, 1]])
        (found,) = about_actions(actions, state_names=list(LIBERO.state_names))
        assert "'open_is_negative'" in found.what
        assert "open_is_positive" not in found.what

    def test_a_gripper_in_another_place_and_actions_beyond_the_range(self):
        actions = np.zeros((4, 7), np.float32)
        actions[:, 0] = actions[:, -1] = [-1, 1, 1, -1]
        actions[2, 3] = -2.5
        _, switch, beyond = about_actions(actions, "open_is_negative")
        assert "entries [0] are -1 and +1 only" in switch.what
        assert (beyond.severity, beyond.what) == ("warning", "entries [3] go beyond -1..1 (up to 2.5).")

    def test_training_refuses_what_the_values_contradict(self, root):
        change(root, "action", lambda rows: [[*row[:-1], 100 * abs(row[-1])] for row in rows])
        dataset = open_dataset(root)
        with pytest.raises(DatasetError, match="no gripper command of -1 and"):
            dataset.look_through(ActionConvention("open_is_negative"))
        dataset.look_through(ActionConvention("none"))


class TestStatistics:
    def test_an_entry_that_acts_in_one_row_of_250_can_be_commanded(self):
        values = np.zeros((250, 2), np.float32)
        values[17, 0] = 0.8
        values[:, 1] = np.linspace(-1, 1, 250)
        stats = NormStats.compute(values)
        assert rarely_changing(values).tolist() == [True, False]
        np.testing.assert_allclose(stats.unnormalise(stats.normalise(values))[:, 0], values[:, 0], atol=1e-6)

    @given(
        arrays.arrays(np.float32, st.tuples(st.integers(1, 60), st.integers(1, 3)), elements=st.floats(-5, 5, width=32))
    )
    def test_normalised_values_stay_in_bounds_and_extremes_can_be_reached(self, values):
        stats = NormStats.compute(values)
        normalised = stats.normalise(values)
        assert np.abs(normalised).max() <= 1
        reach = stats.unnormalise(np.stack([-np.ones(stats.size), np.ones(stats.size)]).astype(np.float32))
        rare = rarely_changing(values)
        np.testing.assert_allclose(reach[:, rare], np.stack([stats.min, stats.max])[:, rare], atol=1e-5)

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"action": 3}', '{"action": {"q01": "x"}}'])
    def test_a_foreign_stats_file_stops_nobody(self, root, content):
        (root / STATS_PATH).write_text(content)
        assert summarise(root).lengths.tolist() == [6, 7, 8]
        open_dataset(root)


class TestTimestamps:
    def test_late_and_jittered_ones_are_told_apart(self, tmp_path):
        root = tmp_path / "video"
        record(root, [episode(0, size=(64, 64)), episode(1, size=(64, 64))], dtype="video", size=(64, 64))
        change(root, "timestamp", lambda rows: [value + 0.5 for value in rows])
        assert "timestamps go from 0.500 to 1.000 s, its pictures in" in errors(root)[0].what
        assert any("all 0.500 s late" in finding.what for finding in check_dataset(root))
        change(root, "timestamp", lambda rows: [row % 11 / 20 + 0.04 * (row % 11 % 2) for row in range(len(rows))])
        found = [finding for finding in check_dataset(root) if "data.timestamps=frame_index" in finding.fix]
        assert [finding.severity for finding in found] == ["warning"] * 2
        assert "up to 0.040 s off" in found[0].what

    def test_frames_by_number_on_request(self, tmp_path):
        root = tmp_path / "video"
        record(root, [episode(seed, size=(64, 64)) for seed in range(2)], dtype="video", size=(64, 64))
        before = open_dataset(root).batch(range(22)).images
        change(root, "timestamp", lambda rows: [1000 + value * 1.3 for value in rows])
        with pytest.raises(DatasetError, match=r"data\.timestamps=frame_index"):
            open_dataset(root, cache_dir=tmp_path / "other")
        after = open_dataset(root, cache_dir=tmp_path / "other", timestamps="frame_index").batch(range(22)).images
        for camera, images in before.items():
            assert (images == after[camera]).all()

    def test_pictures_of_one_way_to_find_them_are_none_of_the_other(self, tmp_path):
        root = tmp_path / "video"
        record(root, [episode(0, size=(64, 64))], dtype="video", size=(64, 64))
        stored, counted = (open_dataset(root, timestamps=way) for way in ("stored", "frame_index"))
        assert stored.frames["primary"].path != counted.frames["primary"].path

    def test_training_looks_at_them_too(self, tmp_path):
        """One frame late, every time but the last has a picture: that of another moment."""
        root = tmp_path / "video"
        record(root, [episode(seed, size=(64, 64)) for seed in range(2)], dtype="video", size=(64, 64))
        change(root, "timestamp", lambda rows: [value + 0.05 * (row < 11) for row, value in enumerate(rows)])
        with pytest.raises(DatasetError, match=r"from 0.050 to 0.550 s, .* to 0.500 s: .*data\.timestamps=frame_index"):
            open_dataset(root)
        open_dataset(root, timestamps="frame_index")

    def test_an_episode_whose_beginning_was_cut_off_is_read_at_its_times(self, tmp_path):
        root = tmp_path / "video"
        record(root, [episode(seed, size=(64, 64)) for seed in range(2)], dtype="video", size=(64, 64))
        before = open_dataset(root).batch(range(22)).images["primary"]
        table = pq.read_table(root / DATA).to_pylist()[3:]
        for row in table[:8]:
            row["frame_index"] -= 3
        shape = pq.read_schema(root / DATA)
        for number, row in enumerate(table):
            row["index"] = number
        pq.write_table(pa.Table.from_pylist(table, schema=shape), root / DATA)
        rows = pq.read_table(root / EPISODES).to_pylist()
        rows[0]["length"] = rows[0]["dataset_to_index"] = rows[1]["dataset_from_index"] = 8
        rows[1]["dataset_to_index"] = 19
        pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(root / EPISODES)), root / EPISODES)
        info = json.loads((root / INFO_PATH).read_text()) | {"total_frames": 19}
        (root / INFO_PATH).write_text(json.dumps(info))
        cut = open_dataset(root, cache_dir=tmp_path / "other").batch(range(19)).images["primary"]
        assert (cut == before[3:]).all()


def test_a_film_without_a_picture_of_its_own(tmp_path):
    root = tmp_path / "video"
    record(root, [episode(0, size=(64, 64), render_every=1)] * 2, dtype="video", size=(64, 64), fresh=False)
    info = json.loads((root / INFO_PATH).read_text())
    info["features"][FRESH_KEY] = {"dtype": "bool", "shape": [1], "names": None}
    (root / INFO_PATH).write_text(json.dumps(info))
    table = pq.read_table(root / DATA)
    pq.write_table(table.append_column(FRESH_KEY, pa.array([False] * 11 + [True] * 11)), root / DATA)
    assert not errors(root)
    assert len(open_dataset(root).frames["primary"]) == 11


def test_several_sentences_in_an_episode_are_all_listed(root):
    table = pa.table({"task_index": [0, 1], "task": ["pick up the cup", "put it down"]})
    pq.write_table(table, root / TASKS_PATH)
    change(root, "task_index", lambda rows: [row % 2 for row in range(len(rows))])
    found = {task.instruction: (task.episodes, task.frames) for task in summarise(root).tasks}
    assert found == {"pick up the cup": (3, 11), "put it down": (3, 10)}


def test_a_declared_column_that_is_not_there(root):
    info = json.loads((root / INFO_PATH).read_text())
    info["features"]["observation.effort"] = {"dtype": "float32", "shape": [3], "names": None}
    info["features"]["observation.depth_raw"] = {"dtype": "uint8", "shape": [240, 320], "names": None}
    (root / INFO_PATH).write_text(json.dumps(info))
    assert [vector.key for vector in summarise(root).vectors] == [STATE, "action"]
    (found,) = [finding for finding in check_dataset(root) if finding.severity == "warning"]
    assert found.feature == "observation.effort"


def test_published_sampling_of_short_episodes(tmp_path):
    record(tmp_path / "d", [episode(0, length=3), episode(1, length=2)])
    with pytest.raises(DatasetError, match="no episode as long as a chunk"):
        open_dataset(tmp_path / "d", chunk_size=8, sampling="published")


@pytest.mark.parametrize("name", [INFO_PATH, TASKS_PATH, DATA])
def test_a_pointer_in_place_of_a_file(root, name):
    (root / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n")
    with pytest.raises(DatasetError, match="git lfs pull"):
        open_dataset(root)


class TestCommand:
    def check(self, *arguments):
        return CliRunner().invoke(app, ["dataset", "check", *map(str, arguments)], catch_exceptions=False)

    def test_the_exit_code_says_whether_it_can_be_used(self, root):
        assert self.check(root).exit_code == 0
        change(root, "action", lambda rows: [[np.nan, *rows[0][1:]], *rows[1:]])
        done = self.check(root, "--quick")
        assert done.exit_code == 1
        assert "error: feature action, episode 0, frame 0: entry 0 is nan" in done.stdout
        document = json.loads(self.check(root, "--json").stdout)
        assert document[0]["severity"] == "error"
        assert self.check(root / "nowhere").exit_code == 1

    def test_inspect_lists_what_is_wrong(self, root, tmp_path):
        change(root, "action", lambda rows: [[np.nan, *rows[0][1:]], *rows[1:]])
        change(root, STATE, lambda rows: [*rows[:9], [np.inf] * 8, *rows[10:]])
        page = tmp_path / "page.html"
        done = CliRunner().invoke(app, ["dataset", "inspect", str(root), "--output", str(page)], catch_exceptions=False)
        assert done.exit_code == 1
        assert "error: feature action, episode 0, frame 0: entry 0 is nan" in done.stdout
        assert f"error: feature {STATE}, episode 1, frame 3: entry 0 is inf" in done.stdout
        assert not page.exists()

    @pytest.mark.parametrize("fps", ["0", "-5", "nan"])
    def test_a_frame_rate_that_is_none(self, tmp_path, fps):
        result = CliRunner().invoke(app, ["dataset", "convert", str(tmp_path), str(tmp_path / "out"), "--fps", fps])
        assert result.exit_code != 0
        assert "--fps must be above 0" in str(result.exception)
        assert not (tmp_path / "out").exists()


@settings(max_examples=15)
@given(data=st.data())
def test_any_values_are_read_right_or_refused(tmp_path_factory, data):
    """Random lengths and values, finite or not: what is opened equals what was recorded, the rest names its place."""
    folder = tmp_path_factory.mktemp("any")
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    value = data.draw(st.sampled_from([0.0, -3.5, 1e6, float("nan"), float("-inf")]))
    episodes = [episode(seed, length=length, size=(8, 8)) for seed, length in enumerate(lengths)]
    record(folder / "d", episodes, size=(8, 8))
    row = data.draw(st.integers(0, sum(lengths) - 1))
    change(
        folder / "d", "action", lambda rows: [[value, *each[1:]] if n == row else each for n, each in enumerate(rows)]
    )
    if np.isfinite(value):
        dataset = open_dataset(folder / "d")
        assert dataset.batch([row]).actions[0, 0, 0] == np.float32(value)
        assert dataset.batch([row]).images["primary"].shape == (1, 8, 8, 3)
    else:
        starts = np.concatenate([[0], np.cumsum(lengths)])
        number = int(np.searchsorted(starts, row, side="right")) - 1
        with pytest.raises(DatasetError, match=rf"episode {number}, frame {row - starts[number]}"):
            open_dataset(folder / "d")


def test_a_feature_of_two_axes_is_looked_through_entry_by_entry(root):
    """LeRobot writes nested lists, and statistics of the last axis only."""
    info = json.loads((root / INFO_PATH).read_text())
    info["features"]["observation.forces"] = {"dtype": "float32", "shape": [2, 3], "names": None}
    (root / INFO_PATH).write_text(json.dumps(info))
    table = pq.read_table(root / DATA)
    cells = np.random.default_rng(0).normal(size=(len(table), 2, 3)).astype(np.float32)
    kind = pa.list_(pa.list_(pa.float32()))
    pq.write_table(table.append_column("observation.forces", pa.array(cells.tolist(), kind)), root / DATA)
    stats = json.loads((root / STATS_PATH).read_text())
    stats["observation.forces"] = {name: values[:3] for name, values in stats[STATE].items()}
    (root / STATS_PATH).write_text(json.dumps(stats))
    (vector,) = [vector for vector in summarise(root).vectors if vector.key == "observation.forces"]
    np.testing.assert_array_equal(vector.stats.max, cells.reshape(-1, 6).max(axis=0))
    assert errors(root) == []
    assert verdict(check_dataset(root)) == "1 note"


def test_a_glitch_in_a_command_that_is_mostly_nothing_is_said(root):
    def jerk(rows):
        return [[0.001 * (number % 3 == 0), *row[1:]] for number, row in enumerate(rows)]

    change(root, "action", jerk)
    change(root, "action", lambda rows: [*rows[:4], [300.0, *rows[4][1:]], *rows[5:]])
    (found,) = [
        finding for finding in check_dataset(root) if finding.severity == "warning" and "entry 0" in finding.what
    ]
    assert (found.feature, found.episode, found.frame) == ("action", 0, 4)


def test_no_row_with_pictures_of_its_own(tmp_path):
    record(root := tmp_path / "d", [episode(seed, render_every=2) for seed in range(2)], fresh=True)
    change(root, FRESH_KEY, lambda rows: [False] * len(rows))
    (found,) = errors(root)
    assert found.feature == FRESH_KEY
    with pytest.raises(DatasetError, match="no row has pictures of its own"):
        open_dataset(root)


def test_one_episode_without_pictures_of_its_own_is_said(tmp_path):
    record(root := tmp_path / "d", [episode(seed, length=6, render_every=2) for seed in range(2)], fresh=True)
    change(root, FRESH_KEY, lambda rows: [False] * 6 + rows[6:])
    (found,) = [finding for finding in check_dataset(root) if finding.feature == FRESH_KEY]
    assert (found.severity, found.episode) == ("warning", 0)


def test_a_fingerprint_sees_through_links(root, tmp_path):
    (root / "data").rename(tmp_path / "elsewhere")
    (root / "data").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "elsewhere")
    before = open_dataset(root).source.fingerprint()
    change(root, "action", lambda rows: [[value + 0.5 for value in row] for row in rows])
    assert open_dataset(root).source.fingerprint() != before
