import errno
import json
import os

import pytest

from rdvla.errors import ConfigError, RecordError, StorageError
from rdvla.eval.records import EPISODES_FILE, EpisodeLog, EpisodeRecord, ErrorRecord, parse_line, read_records, to_line
from rdvla.stops import StopRule

IDENTITY = {
    "suite": "line",
    "task": "reach_0",
    "task_id": 0,
    "instruction": "reach",
    "init_state": 0,
    "seed": 7,
    "episode_seed": 1,
    "rule": "fixed(2)",
    "stop": StopRule.fixed(2),
    "depth": 2,
    "horizon": "5",
    "attempts": 1,
    "versions": {"rdvla": "0"},
}


def episode(**changes):
    values = {
        "success": True,
        "steps": 9,
        "iterations": (2, 2),
        "executed": (5, 4),
        "convergence": ((), ()),
        "latency_ms": {"decide": (1.0, 2.0)},
        "wall_s": 0.1,
    }
    return EpisodeRecord(**(IDENTITY | values | changes))


def test_round_trip():
    for record in (episode(), episode(stop=StopRule("latent"), depth=None), ErrorRecord(**IDENTITY, error="broke")):
        assert parse_line(to_line(record), where="here") == record
        assert "\n" not in to_line(record)


def test_torn_last_line_is_cut_and_the_log_continues(tmp_path):
    with EpisodeLog(tmp_path) as log:
        log.append(episode())
    path = tmp_path / EPISODES_FILE
    path.write_bytes(path.read_bytes() + to_line(episode(init_state=1)).encode()[:-20])
    assert [r.init_state for r in read_records(tmp_path)] == [0]
    with EpisodeLog(tmp_path) as log:
        assert len(log.records) == 1
        log.append(episode(init_state=2))
    assert [r.init_state for r in read_records(tmp_path)] == [0, 2]
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("damage", [b'{"kind":"episode"}\n', b"nonsense\n", b"\n", b"\xff\xfe\n", b'{"kind":"x"}\n'])
def test_damage_in_the_middle_names_the_line(tmp_path, damage):
    good = to_line(episode()).encode() + b"\n"
    (tmp_path / EPISODES_FILE).write_bytes(good + damage + good)
    with pytest.raises(RecordError, match=rf"{EPISODES_FILE}:2: "):
        read_records(tmp_path)
    with pytest.raises(RecordError), EpisodeLog(tmp_path):
        pass
    assert (tmp_path / EPISODES_FILE).read_bytes() == good + damage + good


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("wall_s", "NaN"),
        ("wall_s", "-1"),
        ("latency_ms", '{"decide":[NaN,1.0]}'),
        ("latency_ms", '{"decide":[Infinity]}'),
        ("latency_ms", '{"decide":[-1.0]}'),
        ("iterations", "[-3]"),
        ("executed", "[-1]"),
        ("steps", "NaN"),
        ("signals", '{"doubt":[NaN]}'),
        ("of_a_later_version", "1"),
    ],
)
def test_numbers_that_no_episode_has(field, value):
    """They would be drawn, or summed up."""
    values = json.loads(to_line(episode())) | {field: "HERE"}
    line = json.dumps(values).replace('"HERE"', value)
    with pytest.raises(RecordError, match=rf"file:1: episode\.{field}.*damaged, or of another version"):
        parse_line(line, where="file:1")


def test_impossible_rule_in_a_line(tmp_path):
    line = to_line(episode()).replace('"max_depth":2', '"max_depth":0')
    with pytest.raises(RecordError, match="max_depth"):
        parse_line(line, where="file:1")


def test_repeated_episode_supersedes_its_error(tmp_path):
    with EpisodeLog(tmp_path) as log:
        log.append(ErrorRecord(**IDENTITY, error="broke"))
        log.append(episode(attempts=2))
    assert [record.kind for record in read_records(tmp_path)] == ["episode"]


def test_missing_log(tmp_path):
    with pytest.raises(RecordError, match="rdvla eval"):
        read_records(tmp_path)


def test_one_writer_at_a_time(tmp_path):
    with EpisodeLog(tmp_path), pytest.raises(ConfigError, match="another evaluation"), EpisodeLog(tmp_path):
        pass
    with EpisodeLog(tmp_path):
        pass


def test_disk_full_leaves_whole_lines(tmp_path, monkeypatch):
    with EpisodeLog(tmp_path) as log:
        log.append(episode())
        before = (tmp_path / EPISODES_FILE).read_bytes()
        write = os.write

        def half(descriptor, data):
            write(descriptor, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", half)
        with pytest.raises(StorageError, match="disk is full"):
            log.append(episode(init_state=1))
    assert (tmp_path / EPISODES_FILE).read_bytes() == before


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"), EpisodeLog(tmp_path / "file" / "out"):
        pass
    with pytest.raises(RecordError, match="rdvla eval"):
        read_records(tmp_path / "file")
