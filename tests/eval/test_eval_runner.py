import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from eval_fakes import (
    TASKS,
    BrokenPolicy,
    LineEnv,
    LinePolicy,
    LineSuite,
    OracleExpert,
    crashing_env,
    suites,
)

from chain_fakes import ChainEnv, ChainSuite
from patience import eventually
from rdvla.cli.parsing import parse_depths
from rdvla.envs import InitState
from rdvla.errors import ConfigError, RecordError, SimulatorError
from rdvla.eval.protocol import EvalConfig, Job, Rule, plan
from rdvla.eval.records import EPISODES_FILE, read_records
from rdvla.eval.rollout import run_episode
from rdvla.eval.runner import Resources, evaluate
from rdvla.jobs.pool import WorkerError
from rdvla.jobs.process import ProcessSlot
from rdvla.stops import StopRule

ADAPTIVE = StopRule("action_l2", 1e-3, max_depth=32)


def config(**changes):
    values = {"policy": "line", "suites": ("line",), "task_ids": (0, 1), "init_states": (0, 1, 2), "horizons": ("3",)}
    return EvalConfig.build(values | {"stops": parse_depths("1,4")} | changes)


def run(output, settings, *, policy=LinePolicy, env=LineEnv, workers=2, **resources):
    return evaluate(
        settings,
        suites=suites(env),
        policy_factory=policy,
        output=output,
        resources=Resources(workers=workers, **resources),
    )


def test_parallel_run_records_everything(tmp_path):
    records = run(tmp_path, config(stops=(*parse_depths("1,4"), ADAPTIVE), videos=1))
    assert [record.key for record in records] == [
        job.key for job in plan(config(stops=(*parse_depths("1,4"), ADAPTIVE)), suites())
    ]
    assert {record.success for record in records if record.depth == 1} == {False}
    assert {record.success for record in records if record.depth == 4} == {True}
    one = next(record for record in records if record.rule.startswith("action_l2"))
    assert one.versions["line_world"] == "1"
    assert one.versions["numpy"]
    assert sum(one.executed) == one.steps
    assert len(one.iterations) == len(one.executed) == len(one.convergence)
    assert len(one.convergence[0]) == one.iterations[0]
    assert set(one.latency_ms) == {"observe", "decide", "policy.total", "policy.encode"}
    assert all(len(values) == len(one.iterations) for values in one.latency_ms.values())
    films = [record for record in records if record.video]
    assert {record.init_state for record in films} == {0}
    assert all((tmp_path / record.video).stat().st_size > 500 for record in films)
    assert len({record.video for record in films}) == 2 * 3
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [row["success_rate"] for row in summary["rules"][:2]] == [0.0, 1.0]
    assert all(row["n"] == 6 for row in summary["rules"])
    assert summary["rules"][1]["wilson_95"][0] == pytest.approx(0.6097, abs=1e-4)
    assert json.loads((tmp_path / "policy.json").read_text())["name"] == "line policy"


def test_number_of_workers_changes_nothing(tmp_path):
    settings = config(stops=(ADAPTIVE,), horizons=("dynamic_paper",))
    one, three = (run(tmp_path / str(n), settings, workers=n) for n in (1, 3))
    for a, b in zip(one, three, strict=True):
        timing = {"wall_s", "latency_ms"}
        assert a.model_dump(exclude=timing) == b.model_dump(exclude=timing)


def test_filming_changes_nothing(tmp_path):
    plain, filmed = run(tmp_path / "a", config()), run(tmp_path / "b", config(videos=9))
    for a, b in zip(plain, filmed, strict=True):
        assert a.model_dump(exclude={"wall_s", "latency_ms", "video"}) == b.model_dump(
            exclude={"wall_s", "latency_ms", "video"}
        )


def test_rendering_only_when_the_policy_looks():
    env, job = LineEnv("line", 0), Job(TASKS["line"][0], InitState(0), Rule(StopRule.fixed(1), "5"), 7)
    outcome = run_episode(env, LinePolicy(), job)
    assert outcome.steps == 12
    assert env.frames == len(outcome.iterations) == 3


def test_policy_bound_to_the_environment_is_never_rendered_for():
    env, expert = LineEnv("line", 0), OracleExpert()
    expert.bind(env)
    outcome = run_episode(env, expert, Job(TASKS["line"][0], InitState(0), Rule(None, "1"), 7))
    assert outcome.success
    assert outcome.steps == 1
    assert env.frames == 0


def test_expert_is_bound_by_the_worker(tmp_path):
    records = run(tmp_path, config(stops=(None,), task_ids=(0,)), policy=OracleExpert)
    assert all(record.success and record.rule == "default" for record in records)


SCRIPT = """
import sys
sys.path[:0] = {folders!r}
from functools import partial
from pathlib import Path
from eval_fakes import HeldPolicy
from test_eval_runner import config, run
if __name__ == "__main__":
    output = Path(sys.argv[1])
    run(output, config(init_states=tuple(range(8))), policy=partial(HeldPolicy, output / "episodes.jsonl", 5))
"""


def test_kill_9_and_resume(tmp_path):
    script, output = tmp_path / "script.py", tmp_path / "out"
    script.write_text(SCRIPT.format(folders=[str(path) for path in list(Path(__file__).parents)[:2]]))
    process = subprocess.Popen([sys.executable, str(script), str(output)], start_new_session=True)
    log = output / EPISODES_FILE
    eventually(lambda: process.poll() is not None or (log.exists() and log.read_bytes().count(b"\n") >= 5))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = log.read_bytes()
    kept = read_records(output)
    assert 5 <= len(kept) < 32
    log.write_bytes(before + b'{"kind":"epis')  # as if killed in the middle of a line
    settings = config(init_states=tuple(range(8)))
    records = run(output, settings)
    assert log.read_bytes().startswith(before)
    lines = log.read_bytes().decode().splitlines()
    assert len(lines) == len(records) == 32
    assert len({record.key for record in records}) == 32
    whole = run(tmp_path / "whole", settings)
    timing = {"wall_s", "latency_ms"}
    assert [r.model_dump(exclude=timing) for r in whole] == [r.model_dump(exclude=timing) for r in records]


def test_finished_evaluation_starts_no_worker(tmp_path, monkeypatch):
    first = run(tmp_path, config())
    monkeypatch.setattr(ProcessSlot, "send", None)
    assert run(tmp_path, config()) == first


def test_other_settings_in_the_same_folder(tmp_path):
    run(tmp_path, config(task_ids=(0,)))
    with pytest.raises(ConfigError, match=r"task_ids was \[0\], now \[0, 1\]"):
        run(tmp_path, config())
    run(tmp_path, config(task_ids=(0,)), workers=1)


@pytest.mark.parametrize("how", ["exit", "raise"])
def test_broken_simulator_is_repeated_and_is_no_failure(tmp_path, how):
    env = partial(crashing_env, marks=str(tmp_path / "marks"), times=2, how=how)
    records = run(tmp_path / "out", config(stops=parse_depths("4")), env=env)
    assert all(record.kind == "episode" and record.success for record in records)
    assert [record.attempts for record in records] == [1, 3, 1, 1, 1, 1]


@pytest.mark.parametrize(("how", "message"), [("exit", "exit code 9"), ("raise", "the world ended")])
def test_hopeless_episode_is_an_error_and_tried_again_by_the_next_run(tmp_path, how, message):
    marks = tmp_path / "marks"
    env = partial(crashing_env, marks=str(marks), times=3, how=how)
    records = run(tmp_path / "out", config(stops=parse_depths("4")), env=env)
    assert [record.kind for record in records] == ["episode", "error", *["episode"] * 4]
    assert message in records[1].error
    assert records[1].attempts == 3
    rule = json.loads((tmp_path / "out" / "summary.json").read_text())["rules"][0]
    assert (rule["n"], rule["success_rate"], rule["errors"]) == (5, 1.0, 1)
    again = run(tmp_path / "out", config(stops=parse_depths("4")), env=env)
    assert [record.kind for record in again] == ["episode"] * 6


def test_hung_simulator_is_ended(tmp_path):
    env = partial(crashing_env, marks=str(tmp_path / "marks"), times=3, how="hang")
    settings = config(task_ids=(0,), init_states=(1,), stops=parse_depths("4"))
    (record,) = run(tmp_path / "out", settings, env=env, workers=1, episode_timeout_s=0.5)
    assert record.kind == "error"
    assert "still running after 0.5 s" in record.error


def no_simulator(suite, task_id):
    raise SimulatorError("no GL library")


def test_simulator_that_never_works_stops_the_run(tmp_path):
    with pytest.raises(SimulatorError, match=r"in a row.*no GL library"):
        run(tmp_path, config(), env=no_simulator, workers=1)
    assert [record.kind for record in read_records(tmp_path)] == ["error"] * 3


def picky_env(suite, task_id):
    raise ConfigError("init_state = 99: there are 50")


def test_defect_of_the_policy_stops_with_its_traceback(tmp_path):
    with pytest.raises(WorkerError, match=r"(?s)ZeroDivisionError: the policy has a defect.*in infer"):
        run(tmp_path / "out", config(), policy=BrokenPolicy)
    assert not (tmp_path / "out").exists()


def test_user_errors_in_a_worker_keep_their_type(tmp_path):
    with pytest.raises(ConfigError, match="there are 50"):
        run(tmp_path, config(), env=picky_env)


def test_wrong_resources():
    for values in ({"workers": 0}, {"episode_timeout_s": 0.0}):
        with pytest.raises(ConfigError):
            Resources(**values)


class UnfitPolicy(LinePolicy):
    metadata = replace(LinePolicy.metadata, cameras=("left",))


def no_world(suite, task_id):
    raise AssertionError("an environment was started")


def test_a_policy_that_does_not_fit_is_refused_before_an_environment_starts(tmp_path):
    with pytest.raises(ConfigError, match=r"does not fit suite 'line'.*cameras left.*primary 32x32"):
        run(tmp_path / "out", config(), policy=UnfitPolicy, env=no_world)
    assert not (tmp_path / "out").exists()


def test_a_run_from_before_there_were_seeds_and_protocols_is_continued(tmp_path):
    settings = config(task_ids=(0,))
    whole = run(tmp_path, settings)
    content = json.loads((tmp_path / "run.json").read_text())
    for name in ("seeds", "protocol"):
        del content["config"][name]
    (tmp_path / "run.json").write_text(json.dumps(content))
    lines = (tmp_path / EPISODES_FILE).read_text().splitlines(keepends=True)
    assert set(json.loads(lines[0])) == OLD_FIELDS | {"signals"}
    (tmp_path / EPISODES_FILE).write_text("".join(lines[:2]))
    timing = {"wall_s", "latency_ms"}
    again = run(tmp_path, settings)
    assert [r.model_dump(exclude=timing) for r in again] == [r.model_dump(exclude=timing) for r in whole]


def test_a_run_that_goes_on_otherwise_says_so(tmp_path, caplog):
    settings = config(task_ids=(0,))
    run(tmp_path, settings)
    log = tmp_path / EPISODES_FILE
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        line["versions"]["line_world"] = "0"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]))
    assert not caplog.records
    run(tmp_path, settings)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "holds episodes of line that were played otherwise (line_world was 0, is 1)" in told


class NumberedEnv(LineEnv):
    def versions(self):
        return {"line_world": str(self.task.task_id)}


def test_workers_that_play_otherwise_are_told_once(tmp_path, caplog):
    run(tmp_path, config(), env=NumberedEnv, workers=1)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "holds episodes of line that were played otherwise (line_world was 0, is 1)" in told


class UnpreparedSuite(LineSuite):
    def prepare(self):
        raise SimulatorError("no renderer")


def test_a_suite_settles_what_its_workers_inherit_before_they_start(tmp_path):
    unprepared = {name: UnpreparedSuite(name) for name in TASKS}
    with pytest.raises(SimulatorError, match="no renderer"):
        evaluate(config(), suites=unprepared, policy_factory=LinePolicy, output=tmp_path)
    assert not (tmp_path / "run.json").exists()
    run(tmp_path, config())
    evaluate(config(), suites=unprepared, policy_factory=LinePolicy, output=tmp_path)  # nothing is left to play


def test_the_usual_protocol_may_be_named_or_not(tmp_path):
    settings = config(suites=("chain",), task_ids=None, init_states=(2,), stops=(None,))
    chain = {"chain": ChainSuite("chain", "short")}
    before = evaluate(settings, suites=chain, policy_factory=LinePolicy, output=tmp_path)
    named = settings.model_copy(update={"protocol": "short"})
    assert evaluate(named, suites=chain, policy_factory=LinePolicy, output=tmp_path) == before
    other = settings.model_copy(update={"protocol": "long"})
    with pytest.raises(ConfigError, match="protocol was '', now 'long'"):
        evaluate(other, suites={"chain": ChainSuite("chain", "long")}, policy_factory=LinePolicy, output=tmp_path)


@pytest.mark.parametrize("changes", [{"task_id": 9}, {"suite": "other"}, {"rule": "fixed(77)"}])
def test_a_record_of_another_evaluation_is_named_before_anything_is_played(tmp_path, changes):
    settings = config(task_ids=(0,))
    run(tmp_path, settings)
    log = tmp_path / EPISODES_FILE
    first, *others = log.read_text().splitlines()
    log.write_text("\n".join([json.dumps(json.loads(first) | changes), *others]) + "\n")
    with pytest.raises(RecordError, match="holds an episode that this evaluation does not have"):
        run(tmp_path, settings, env=no_world)


@pytest.mark.parametrize(
    ("content", "message"), [('{"schema": 2, "config": {}}', "has schema 2, this rdvla reads 1"), ("[]", "damaged")]
)
def test_settings_that_cannot_be_read(tmp_path, content, message):
    settings = config(task_ids=(0,))
    run(tmp_path, settings)
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RecordError, match=message):
        run(tmp_path, settings, env=no_world)


OLD_FIELDS = {
    "suite", "task", "task_id", "instruction", "init_state", "seed", "episode_seed", "rule", "stop", "depth", "horizon",
    "attempts", "versions", "kind", "success", "steps", "iterations", "executed", "convergence", "latency_ms", "wall_s",
    "video",
}  # fmt: skip


class Rewording(LineEnv):
    """Asks in other words than the task's name says, as suites do whose words vary."""

    @property
    def stages(self):
        return (replace(self.task.stages[0], instruction="go to the very end"),)


def test_the_record_has_the_words_that_the_policy_was_given(tmp_path):
    records = run(tmp_path, config(task_ids=(0,), init_states=(0,)), env=Rewording)
    assert {record.instruction for record in records} == {"go to the very end"}


def test_episodes_of_several_stages(tmp_path):
    settings = config(suites=("chain",), task_ids=None, init_states=(2, 4), stops=(None,))
    chain = {"chain": ChainSuite("chain", "short")}
    solved, missed = evaluate(settings, suites=chain, policy_factory=LinePolicy, output=tmp_path)
    assert (solved.success, solved.stages_solved, solved.protocol) == (True, 3, "short")
    assert (missed.success, missed.stages_solved, missed.steps) == (False, 1, 7)
    assert [(s.name, s.steps, s.solved) for s in missed.stages] == [("one", 4, True), ("two", 3, False)]
    assert read_records(tmp_path) == [solved, missed]


def test_a_new_stage_is_decided_anew():
    seen = []

    class Watching(LinePolicy):
        def infer(self, observation, ask):
            seen.append(observation.instruction)
            return super().infer(observation, ask)

    outcome = run_episode(ChainEnv(), Watching(), Job(ChainEnv.task, InitState(2), Rule(None, "5"), 7))
    assert seen == ["do one", "do two", "do three"]
    assert outcome.executed == (2, 2, 2)
