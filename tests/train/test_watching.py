"""What a run shows: lines and bar, trackers, episodes played in between, the report."""

import json
import re
import shutil
import sys
import types
from importlib.machinery import ModuleSpec

import pytest
import torch
import yaml
from train_fakes import record, run_small, settings, small
from typer.testing import CliRunner

from rdvla.cli.main import app
from rdvla.cli.screen import Screen
from rdvla.config import describe
from rdvla.errors import ConfigError, MissingExtraError, RecordError
from rdvla.eval.records import ErrorRecord, read_records
from rdvla.report.training import load_training, write_training_report
from rdvla.train.config import EvaluationConfig, TrainConfig
from rdvla.train.log import MetricsLog, TensorBoard


class Service(types.ModuleType):
    """Stands for wandb: keeps what it is told."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)  # whoever asks whether wandb is installed looks at it
        self.settings, self.logged, self.finished = {}, [], False

    def init(self, **settings):
        self.settings = settings
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


def test_a_tracker_gets_every_number(dataset, tmp_path, monkeypatch):
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    run_small(dataset, tmp_path / "run", trackers=["wandb"], project="mine", max_steps=2)
    assert [step for step, _ in service.logged] == [1, 2]
    assert {"loss", "learning_rate", "samples_per_second", "memory_gb"} <= service.logged[0][1].keys()
    assert (service.settings["project"], service.settings["name"]) == ("mine", "run")
    assert service.finished
    ids = [service.settings["id"]]
    for folder, steps in (("run", 3), ("other/run", 1)):
        run_small(dataset, tmp_path / folder, trackers=["wandb"], project="mine", max_steps=steps)
        ids.append(service.settings["id"])
    assert ids[0] == ids[1] != ids[2], "a run that goes on is the same, another folder of that name is not"


def test_a_tracker_that_is_not_installed(dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(MissingExtraError, match="trackio"):
        run_small(dataset, tmp_path / "run", trackers=["trackio"])


def test_a_torn_last_line_is_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n{"step": 3, "lo')
    log = MetricsLog(file, [], from_step=1)
    log.write(2, {"loss": 0.5})
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2]


def test_a_run_that_plays_episodes_needs_somebody_who_can(dataset, tmp_path):
    with pytest.raises(ConfigError, match="nothing here can play"):
        run_small(dataset, tmp_path / "run", max_steps=1, evaluation={"every": 1, "suites": ["toy"]})
    with pytest.raises(ConfigError, match="multiple of save_freq"):
        TrainConfig.build(small(dataset, "x", save_freq=2, evaluation={"every": 3, "suites": ["toy"]}))
    for wrong, match in [
        ({"stop": "latnt"}, "Did you mean 'latent'"),
        ({"depth": 3, "threshold": 0.1}, "evaluation.threshold belongs to an adaptive rule; add evaluation.stop"),
        ({"max_depth": 8}, "evaluation.max_depth belongs to an adaptive rule"),
        ({"stop": "fixed", "max_depth": 8}, "unknown adaptive rule 'fixed'"),
        ({"stop": "latent", "depth": 3}, "give one"),
    ]:
        with pytest.raises(ConfigError, match=match):
            EvaluationConfig.build({"every": 1, "suites": ["toy"], **wrong})


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A run on the command line that plays the toy environment after every second step, and its output."""
    folder = tmp_path_factory.mktemp("played")
    dataset = record(folder / "demos", episodes=3, length=4)
    values = settings(dataset, folder / "run", max_steps=2, save_freq=2, validate_freq=2, batch_size=2)
    values["data"] |= {"validation_fraction": 0.34}
    values["evaluation"] = {"every": 2, "suites": ["toy"], "task_ids": [0], "stop": "latent", "threshold": 1e9}
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        result = CliRunner().invoke(app, ["train", "--config", str(folder / "run.yaml")])
    assert result.exit_code == 0, result.output
    return folder / "run", result.output


def test_the_command_shows_steps_and_plays(played):
    folder, output = played
    assert "2/2" in output
    assert "success/toy" in output
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert next(line["success/all"] for line in lines if "success/all" in line) in (0.0, 1.0)
    assert next(line["iterations/all"] for line in lines if "iterations/all" in line) == 2  # the first comparison
    assert (folder / "evaluations" / "000002" / "episodes.jsonl").exists()
    assert list((folder / "tensorboard").iterdir())


def numbers_of(folder, prefix):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], name) for line in lines for name in line if name.startswith(prefix)]


def test_an_evaluation_that_was_interrupted_is_played_to_its_end(played, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = shutil.copytree(played[0], tmp_path / "run")
    command = ["train", "--config", str(played[0].parent / "run.yaml"), f"--output={folder}"]
    expected = numbers_of(folder, "success/")
    file = folder / "metrics.jsonl"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "success" not in line))
    (folder / "evaluations/000002/episodes.jsonl").unlink()
    for _ in range(2):  # and not once more
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert numbers_of(folder, "success/") == expected
    assert (folder / "evaluations/000002/episodes.jsonl").exists()


def test_episodes_that_could_not_be_played_are_said_and_counted(played, tmp_path, monkeypatch, capfd):
    (record,) = read_records(played[0] / "evaluations/000002")
    identity = {name: getattr(record, name) for name in ErrorRecord.model_fields if name not in ("kind", "error")}
    broken = ErrorRecord(**identity, error="the simulator broke")
    monkeypatch.setattr("rdvla.cli.screen.evaluate", lambda *_, **__: [record, broken])
    config = TrainConfig.build(yaml.safe_load((played[0].parent / "run.yaml").read_text()))
    with Screen(config) as screen:
        found = screen.evaluate(played[0] / "checkpoints/000002/policy", tmp_path / "played")
    assert (found["errors/all"], found["success/all"]) == (1, record.success)
    said = "".join(capfd.readouterr())
    assert "1 of 2 episodes could not be played" in said


def test_tensorboard_shows_what_the_run_continued_from_and_nothing_twice(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, steps in [(0, (250, 500, 600, 700)), (500, (600, 1000, 1100)), (1000, (1100, 1200))]:
        board = TensorBoard(tmp_path, from_step=start)
        for step in steps:
            board.log({"loss": float(step)}, step)
        board.finish()
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [point.step for point in shown] == [250, 500, 600, 1000, 1100, 1200]


def test_the_report_of_a_run(played, tmp_path):
    folder, _ = played
    page = tmp_path / "report.html"
    result = CliRunner().invoke(app, ["report", str(folder), "--output", str(page)])
    assert result.exit_code == 0, result.output
    text = page.read_text()
    for expected in ("2 steps, loss", "Validation", "depth 2", "Success", "samples/s", "mean_recurrence"):
        assert expected in text, expected
    assert "http" not in text.replace("http://www.w3.org/", "")
    numbers = load_training(folder).numbers
    assert [step for step, _ in numbers["loss"]] == [1.0, 2.0]
    assert CliRunner().invoke(app, ["report", str(folder), str(folder)]).exit_code != 0


def test_the_report_of_a_run_that_plays_chains(played, tmp_path):
    folder = shutil.copytree(played[0], tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "success/calvin_d": 0.0, "in_a_row/calvin_d": 1.25}\n')
    write_training_report(folder, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "It solved 1.25 tasks in a row in calvin_d." in text
    assert "In a row" in text


def test_the_report_of_a_folder_without_steps(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(RecordError, match="no training step yet"):
        write_training_report(tmp_path, tmp_path / "page.html")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lo')  # still being written
    with pytest.raises(RecordError, match="no training step yet"):
        write_training_report(tmp_path, tmp_path / "page.html")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lo\n')
    with pytest.raises(RecordError, match="damaged"):
        write_training_report(tmp_path, tmp_path / "page.html")


def test_the_bar_says_loss_rate_speed_and_memory(dataset, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with Screen(TrainConfig.build(settings(dataset, "run"))) as screen:
        screen.decoding(1, 2)
        screen.started(0)
        step = {"loss": 0.25, "learning_rate": 1e-4, "depth": 3.0}
        screen.logged(1, step | {"samples_per_second": 12.5, "memory_gb": 1.5})
        screen.stepped(1, step)
        screen.warned("[disk] nearly full")
    shown = capsys.readouterr().out
    for expected in ("0.2500", "0.0001", "12.5 samples/s", "1.5 GB", "1/4", "warning: [disk] nearly full"):
        assert expected in shown, expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["mixed", "bfloat16"])
def test_a_gpu_trains(dataset, tmp_path, precision):
    model = small(dataset, "")["model"] | {"lora": {"rank": 2}, "gradient_checkpointing": True}
    run_small(dataset, tmp_path / "run", device="cuda", precision=precision, model=model)
    assert load_training(tmp_path / "run").numbers["loss"][-1][1] < 10


@pytest.mark.parametrize(
    ("evaluation", "data", "match"),
    [
        ({"suites": ["toi"]}, {}, "unknown suite 'toi'. Did you mean 'toy'"),
        ({"suites": []}, {}, "'evaluation.suites'"),
        ({"device": "nowhere"}, {}, "device 'nowhere' cannot be used here"),
        ({"task_ids": [9]}, {}, "has no task 9"),
        ({"episodes": 51}, {}, "evaluation.episodes is 51, but toy task 0"),
        ({}, {"cameras": {"left": "observation.images.image"}}, "there is no camera 'left'.*cameras left"),
        ({}, {"gripper": "open_is_positive"}, "the gripper is open_is_negative there, not open_is_positive"),
        ({}, {"state": ["observation.state", "observation.state"]}, "the state has 8 numbers there, not 16"),
    ],
)
def test_an_evaluation_that_cannot_be_played_is_refused_before_the_first_step(tmp_path, evaluation, data, match):
    values = settings(record(tmp_path / "demos", episodes=2, length=4), tmp_path / "run", max_steps=1, batch_size=2)
    values["data"] |= {"validation_fraction": 0.0} | data
    values["evaluation"] = {"every": values["save_freq"], "suites": ["toy"]} | evaluation
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        result = CliRunner().invoke(app, ["train", "--config", str(tmp_path / "run.yaml")])
    assert isinstance(result.exception, ConfigError), result.output
    assert re.search(match, str(result.exception))
    assert not (tmp_path / "run").exists()


def test_help_says_every_setting():
    done = CliRunner().invoke(app, ["train", "--help"])
    assert done.exit_code == 0
    for setting in describe(TrainConfig):
        assert setting.meaning, f"{setting.key} has no sentence"
        assert setting.key in done.output
    assert "optimizer.learning_rate" in done.output
    assert "data.root" in done.output
