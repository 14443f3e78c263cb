"""Videos that are not what the tables say: said by `check` and `inspect` without decoding, refused by training."""

import json
import shutil

import av
import numpy as np
import pytest
from data_recordings import PRIMARY, change, episode, errors, open_dataset, record
from typer.testing import CliRunner

from rdvla.cli.main import app
from rdvla.data.checks import check_dataset
from rdvla.data.lerobot_meta import INFO_PATH
from rdvla.data.lerobot_video import decode_frames
from rdvla.errors import DatasetError

EPISODES = "meta/episodes/chunk-000/file-000.parquet"
VIDEO = f"videos/{PRIMARY}/chunk-000/file-000.mp4"


def recorded(folder, count, **options):
    episodes = [episode(seed, length=3 + seed, size=(16, 16)) for seed in range(count)]
    record(folder, episodes, dtype="video", size=(16, 16), **options)
    return folder


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    return {count: recorded(folder / str(count), count) for count in (1, 2, 3)}


@pytest.fixture
def root(originals, tmp_path):
    return shutil.copytree(originals[2], tmp_path / "d")


def inspected(root):
    return CliRunner().invoke(app, ["dataset", "inspect", str(root)], catch_exceptions=False)


def test_a_good_one(root):
    assert errors(root) == []
    assert inspected(root).exit_code == 0


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda video: video.unlink(), "is missing"),
        (lambda video: video.rename(video.with_name("file-001.mp4")), "is missing"),
        (lambda video: video.write_bytes(b""), "is damaged or was never finished"),
        (lambda video: video.write_bytes(video.read_bytes()[:400]), "is damaged or was never finished"),
        (lambda video: video.write_text("version https://git-lfs.github.com/spec/v1"), "is a Git LFS pointer"),
    ],
    ids=["gone", "renamed", "empty", "cut short", "pointer"],
)
def test_a_file_that_is_none_is_named_once(root, damage, words):
    damage(root / VIDEO)
    (found,) = errors(root)
    assert words in found.what
    assert (found.feature, found.episode) == (PRIMARY, 0)
    seen = inspected(root)
    assert seen.exit_code == 1
    assert words in seen.stdout
    with pytest.raises(DatasetError, match=words):
        open_dataset(root)


@pytest.mark.parametrize("column", ["chunk_index", "file_index", "from_timestamp"])
@pytest.mark.parametrize("value", [None, -1])
def test_a_place_that_is_none(root, column, value):
    change(root, f"videos/{PRIMARY}/{column}", lambda rows: [rows[0], value], EPISODES)
    (found,) = errors(root)
    assert f"{column} is {value}" in found.what.replace("-1.0", "-1")
    assert found.episode == 1
    with pytest.raises(DatasetError, match=rf"{column} is {value}"):
        open_dataset(root)


@pytest.mark.parametrize("shift", [-0.15, -0.05])
def test_an_episode_that_would_show_another_s_pictures(root, shift):
    """The second begins where the first does, or one frame too early."""
    change(root, f"videos/{PRIMARY}/from_timestamp", lambda rows: [rows[0], rows[1] + shift], EPISODES)
    found = errors(root)[0]
    assert "but those of episode 0 end at 0.150 s" in found.what
    assert found.episode == 1
    with pytest.raises(DatasetError, match="one of them would show the other"):
        open_dataset(root)


def test_fewer_frames_than_rows(originals, root):
    shutil.copy(originals[1] / VIDEO, root / VIDEO)
    (found,) = errors(root)
    assert "ends 4 frames before the episode does (0.150 s of 0.350)" in found.what
    with pytest.raises(DatasetError, match="ends 4 frames before"):
        open_dataset(root)


def test_more_frames_than_rows_are_doubtful(originals, root):
    shutil.copy(originals[3] / VIDEO, root / VIDEO)
    (found,) = [finding for finding in check_dataset(root) if finding.severity == "warning"]
    assert "goes on for 5 frames after the last episode" in found.what
    open_dataset(root)


def test_a_video_of_another_rate(root, tmp_path):
    shutil.copy(recorded(tmp_path / "slow", 2, fps=10) / VIDEO, root / VIDEO)
    assert any("has no frame at" in finding.what for finding in errors(root))
    with pytest.raises(DatasetError, match="has no frame at"):
        open_dataset(root)


def test_no_template_for_videos(root):
    info = json.loads((root / INFO_PATH).read_text())
    (root / INFO_PATH).write_text(json.dumps(info | {"video_path": None}))
    assert "but no video_path" in errors(root)[0].what


def test_frames_that_lead_up_to_a_keyframe_are_found(tmp_path):
    """HEVC with open groups of pictures: a keyframe is shown after frames that follow it in the file."""
    path, count, fps = tmp_path / "film.mp4", 30, 20
    y, x = np.mgrid[0:64, 0:64]
    with av.open(str(path), "w") as container:
        options = {"x265-params": "keyint=12:bframes=3:log-level=none"}
        stream = container.add_stream("libx265", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(count):
            waves = (127 + 90 * np.sin(x / 17 + y / 23 + number / 5)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.dstack([waves] * 3), format="rgb24")))
        container.mux(stream.encode())
    whole = np.stack(list(decode_frames(path, [number / fps for number in range(count)], fps)))
    for start in range(count):
        frames = list(decode_frames(path, [number / fps for number in range(start, count)], fps))
        np.testing.assert_array_equal(frames, whole[start:])
