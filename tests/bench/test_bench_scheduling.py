"""Throughput against workers on a made-up clock."""

import json

import pytest
from typer.testing import CliRunner

from rdvla.bench.scheduling import StartUpCosts, TimedEpisode, measure_scheduling, recorded_episodes, simulate
from rdvla.cli.main import app
from rdvla.errors import ConfigError, RecordError
from rdvla.eval.records import read_records

FREE = StartUpCosts(worker_s=0, env_s=0)


def episodes(*counts, seconds=10.0):
    return [TimedEpisode(("suite", task), n, seconds) for task, count in enumerate(counts) for n in range(count)]


def test_one_worker_pays_for_everything_once():
    pool = simulate(episodes(4, 4), 1, StartUpCosts(worker_s=3, env_s=5))
    assert pool.now == 3 + 2 * 5 + 8 * 10
    assert pool.environments == 2


def test_workers_take_a_task_each_and_help_where_it_pays():
    assert simulate(episodes(4, 4), 2, FREE).now == 40
    assert simulate(episodes(4, 4), 2, StartUpCosts(0, 5)).now == 45
    shared = simulate(episodes(8), 2, FREE)
    assert (shared.now, shared.environments) == (40, 2)
    alone = simulate(episodes(2), 2, FREE)  # the last one is not worth another environment
    assert (alone.now, alone.environments) == (20, 1)


def test_throughput_grows_until_workers_outnumber_what_there_is():
    table = measure_scheduling(episodes(8, 8, 8, 8), (1, 2, 4, 64), FREE)
    speed_up = [row[table.columns.index("speed-up")] for row in table.rows]
    assert speed_up[:3] == [1, 2, 4]
    assert 4 < speed_up[3] <= 32
    busy = [row[table.columns.index("in episodes")] for row in table.rows]
    assert busy[:3] == [1, 1, 1]
    assert busy[3] < 0.6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "out"
    command = ["eval", "--suite", "toy", "--task-ids", "0,4", "--policy", "expert", "--episodes", "3"]
    assert CliRunner().invoke(app, [*command, "--output", str(output)]).exit_code == 0
    log = output / "episodes.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    for number, record in enumerate(records):
        record["wall_s"] = 1.5 + number  # measured lengths may all be the same millisecond
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    return output


def test_lengths_are_those_of_the_records(run):
    lengths = sorted(record.wall_s for record in read_records(run))
    assert sorted(episode.seconds for episode in recorded_episodes([run], None, 0)) == lengths
    drawn = recorded_episodes([run], 20, 0)
    assert len(drawn) == 2 * 20
    assert {episode.seconds for episode in drawn} <= set(lengths)
    assert drawn == recorded_episodes([run], 20, 0) != recorded_episodes([run], 20, 1)


def test_the_command_line(run, tmp_path):
    command = [
        "bench",
        "scheduling",
        str(run),
        "--workers",
        "1,4",
        "--per-task",
        "30",
        "--json",
        str(tmp_path / "s.json"),
    ]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "60 episodes of 2 tasks" in result.output
    rows = json.loads((tmp_path / "s.json").read_text())["result"][0]["rows"]
    assert [row["workers"] for row in rows] == [1, 4]
    with pytest.raises(ConfigError, match="at least 1 has to work"):
        CliRunner().invoke(app, [*command, "--workers", "0,1"], catch_exceptions=False)
    with pytest.raises(RecordError):
        recorded_episodes([tmp_path], None, 0)
