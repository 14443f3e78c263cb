from pathlib import Path

import numpy as np
import pytest

from rdvla.data.episodes import chunk_starts, chunk_windows, next_keyframes
from rdvla.errors import ConfigError

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "parity" / "golden" / "data"


def test_windows_repeat_the_last_action_and_mark_it():
    frames, is_pad = chunk_windows(np.array([0, 3]), episode_length=5, chunk_size=4)
    assert frames.tolist() == [[0, 1, 2, 3], [3, 4, 4, 4]]
    assert is_pad.tolist() == [[False] * 4, [False, False, True, True]]


def test_sampling():
    assert chunk_starts(5, 3, "padded").tolist() == [0, 1, 2, 3, 4]
    assert chunk_starts(5, 3, "published").tolist() == [0, 1, 2]
    assert chunk_starts(2, 8, "published").tolist() == []


@pytest.mark.parametrize(
    ("commands", "keyframes"),
    [
        ([-1, -1, 1, 1, -1], [2, 2, 4, 4, 4]),
        ([1, 1, 1], [2, 2, 2]),
        ([0, 0, 1, 0, 1, -1, 0], [5, 5, 5, 5, 5, 6, 6]),
        ([0.3, -0.2, -0.9], [1, 2, 2]),
        ([1], [0]),
    ],
)
def test_a_keyframe_is_where_the_gripper_changes_next(commands, keyframes):
    assert next_keyframes(np.array(commands, dtype=np.float32)).tolist() == keyframes


def test_refuses():
    with pytest.raises(ConfigError, match="chunk_size"):
        chunk_starts(5, 0, "padded")
    with pytest.raises(ConfigError, match="Did you mean 'published'"):
        chunk_starts(5, 3, "publish")


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the published numbers are not on this machine")
@pytest.mark.parametrize("trajectory", ["t0", "t1"])
def test_published_chunks(trajectory):
    golden = np.load(GOLDEN / "golden_data.npz")
    actions = golden[f"{trajectory}.norm_action"]
    starts = chunk_starts(len(actions), 8, "published")
    frames, is_pad = chunk_windows(starts, len(actions), 8)
    np.testing.assert_array_equal(actions[frames], golden[f"{trajectory}.chunk_action"])
    assert not is_pad.any()
