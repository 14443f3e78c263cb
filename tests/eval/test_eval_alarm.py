"""The alarm: a limit that successes seldom exceed, measured on other tasks, stored in a checkpoint, in the report."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import checkpoint_fakes
import report_fakes
from rdvla.cli.calibrate import calibrate_command, format_scores
from rdvla.errors import ConfigError
from rdvla.eval.alarm import PacedEpisode, auroc, conformal, fit_alarm, measure_scores, read_played
from rdvla.eval.records import EPISODES_FILE, EpisodeRecord, read_records, to_line
from rdvla.policies import load_policy
from rdvla.policies.network import RDVLAPolicy
from rdvla.policy import Alarm, Ask
from rdvla.report.load import load_runs
from rdvla.report.page import write_report
from rdvla.stops import StopRule
from rdvla.types import Observation


def episode(task, *, success, decisions, depth=4.0):
    """Return one of five steps per decision."""
    steps = 5.0 * np.arange(decisions)
    return PacedEpisode(task, success, 5 * decisions, steps, np.full(decisions, depth), 0.1 * (steps > 95))


EPISODES = [
    *(episode(f"toy {task}", success=True, decisions=10 + number) for task in range(2) for number in range(19)),
    episode("toy 0", success=False, decisions=40),
    episode("toy 1", success=False, decisions=20, depth=9.0),
]


def test_the_limit_is_a_rank_among_successes():
    scores = [float(number) for number in range(1, 20)]
    assert conformal(scores, 0.1) == 18  # number ceil(20 x 0.9)
    assert conformal(scores, 0.05) == 19
    assert conformal(scores, 0.04) == float("inf")
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4000, 20))
    exceeded = [row[-1] > conformal(list(row[:-1]), 0.1) for row in draws]
    assert np.mean(exceeded) == pytest.approx(0.1, abs=0.015)
    for alpha in (0.0, 1.0):
        with pytest.raises(ConfigError, match="alpha must be between"):
            conformal(scores, alpha)


def test_an_alarm_is_the_steps_that_few_successes_take():
    alarm = fit_alarm(EPISODES, 0.1)
    assert alarm == Alarm(steps=130, alpha=0.1, episodes=38)  # 36th of 38, two each of 45, 50 ... 135
    assert (alarm.level(130), alarm.level(0)) == (1.0, 0.0)
    assert alarm.level(131) > 1
    with pytest.raises(ConfigError, match="needs at least 99 successful episodes, found 38"):
        fit_alarm(EPISODES, 0.01)
    with pytest.raises(ConfigError, match="an alarm needs steps"):
        Alarm(steps=0, alpha=0.1, episodes=1)


def test_scores_are_measured_on_tasks_they_were_not_fitted_on():
    steps, depth, window, disagreement, _ = measure_scores(EPISODES, (0.1,), folds=2)
    (found,) = steps.detections  # either task's limit is the other's: 18th of 19, 130 steps
    assert (found.found, found.failures, found.false, found.successes) == (1, 2, 2, 38)
    assert found.lead == 200 - 135
    assert steps.auroc == pytest.approx((38 + 21) / 76)  # the short one: above ten of 19, equal to one
    assert depth.detections[0].found == window.detections[0].found == 1
    assert depth.detections[0].lead == 100
    assert depth.auroc == pytest.approx(0.75)
    assert disagreement.auroc == pytest.approx((30 + 11) / 76)  # 16 of 38 successes have 0.1 too, one failure has 0
    older = [*EPISODES[:-1], replace(EPISODES[-1], disagreement=None)]  # recorded before there was the signal
    assert [each.name for each in measure_scores(older, (0.1,), folds=2)] == ["steps", "depth", "mean depth of 5"]
    with pytest.raises(ConfigError, match="needs 2 tasks and 2 folds"):
        measure_scores([one for one in EPISODES if one.task == "toy 0"], (0.1,), folds=2)
    assert auroc(np.array([]), np.array([1.0])) is None


@pytest.fixture
def run(tmp_path):
    return report_fakes.write_run(tmp_path / "run", stops=(StopRule("action_mse"),), n_tasks=4, episodes=10, skill=0.8)


def test_the_command_stores_it_in_a_checkpoint(run, tmp_path, capsys):
    sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
    import bench_fakes

    policy = bench_fakes.save_checkpoint(tmp_path / "policy")
    options = dict.fromkeys(("depth", "ms", "change", "stop", "delta", "min_depth", "max_depth", "same"))
    options |= {"defer": False, "folds": 4, "json": tmp_path / "a.json", "write": policy}
    calibrate_command([run], alarm=0.2, **options)
    document = json.loads((tmp_path / "a.json").read_text())
    assert load_policy(policy).alarm == Alarm(**document["alarm"]) == fit_alarm(read_played([run]), 0.2)
    assert [score["name"] for score in document["scores"]] == ["steps", "depth", "mean depth of 5"]
    assert "## When it raises an alarm\n\nAfter" in (policy / "README.md").read_text()
    assert "false alarms" in capsys.readouterr().out
    for wish in ({"depth": 4.0}, {"min_depth": 2}, {"max_depth": 8}, {"same": 0.9}, {"defer": True}):
        with pytest.raises(ConfigError, match="calibrated by itself"):
            calibrate_command([run], alarm=0.2, **options | wish)


def test_episodes_of_two_policies_give_no_alarm(run, tmp_path):
    other = report_fakes.write_run(tmp_path / "other", stops=(StopRule("action_mse"),), n_tasks=1)
    report_fakes.edit(other, lambda record: record | {"versions": {"checkpoint": "another"}})
    with pytest.raises(ConfigError, match=r"different checkpoints \(another, none\)"):
        read_played([run, other])


def test_episodes_of_a_policy_that_was_loaded_in_two_ways_give_no_alarm(tmp_path):
    stops, ways = (StopRule("action_mse"),), ("ck", "ck (precision=int8)", "else/ck (device=cuda, compile=True)")
    plain, int8, moved = (
        report_fakes.write_run(tmp_path / f"run{number}", stops=stops, n_tasks=1, policy=policy, seed=number)
        for number, policy in enumerate(ways)
    )
    with pytest.raises(ConfigError, match=r"policies that differ \(as it is; precision=int8\)"):
        read_played([plain, int8])
    assert len(read_played([plain, moved])) == 10


def test_episodes_of_two_protocols_give_no_alarm(run, tmp_path):
    other = report_fakes.write_run(tmp_path / "other", stops=(StopRule("action_mse"),), seed=8)
    report_fakes.edit(other, lambda record: record | {"protocol": "released"})
    with pytest.raises(ConfigError, match=r"different protocols \(the usual one, released\)"):
        read_played([run, other])


def test_an_episode_in_two_folders_counts_once_or_not_at_all(run, tmp_path):
    shutil.copytree(run, tmp_path / "again")
    with pytest.raises(ConfigError, match=r"again' both hold .*it would count twice; name one of them"):
        read_played([run, tmp_path / "again"])


def test_the_area_is_the_share_of_pairs_and_takes_no_table_of_them():
    rng = np.random.default_rng(0)
    higher, lower = rng.integers(0, 9, 60).astype(float), rng.integers(0, 7, 40).astype(float)
    pairs = [(one > other) + 0.5 * (one == other) for one in higher for other in lower]
    assert auroc(higher, lower) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auroc(np.arange(200_000) + 0.5, np.arange(200_000.0)) == pytest.approx(0.5, abs=1e-5)


def test_episodes_under_two_rules_give_no_alarm(tmp_path):
    both = report_fakes.write_run(tmp_path / "both", stops=(StopRule("action_mse"), StopRule.fixed(12)), n_tasks=1)
    with pytest.raises(ConfigError, match=r"played in 2 ways \(action_mse.*; fixed\(12\).*name a rule with --rule"):
        read_played([both])
    assert len(read_played([both], "fixed(12)")) == len(read_played([both], str(StopRule("action_mse")))) == 5
    with pytest.raises(
        ConfigError, match=r"no episode was played under the rule 'fixed\(1\)'. Did you mean 'fixed\(12"
    ):
        read_played([both], "fixed(1)")


def test_a_limit_that_other_tasks_are_too_few_for_is_not_measured():
    few = [*[episode for episode in EPISODES if episode.success][:5], EPISODES[-1]]
    few = [replace(episode, task=f"toy {number % 2}") for number, episode in enumerate(few)]
    steps, *_ = measure_scores(few, (0.05, 0.5), folds=2)
    unknown, known = steps.detections
    assert (unknown.found, unknown.false, unknown.lead) == (None, None, None)
    assert known.found is not None
    assert "too few successes" in format_scores([steps])
    assert "0/" not in format_scores([steps]).splitlines()[4]


def test_records_that_do_not_say_when_a_decision_was_made_are_refused(run):
    first, *_ = read_records(run)
    line = to_line(first.model_copy(update={"steps": first.steps + 1}))
    (run / EPISODES_FILE).write_text(line + "\n")
    with pytest.raises(ConfigError, match="executed synchronously"):
        read_played([run])


def test_a_policy_says_how_near_its_alarm_is():
    checkpoint = replace(checkpoint_fakes.make(), alarm=Alarm(steps=20, alpha=0.1, episodes=50))
    policy = RDVLAPolicy(checkpoint, name="small")
    images = {name: np.zeros((32, 32, 3), np.uint8) for name in ("primary", "wrist")}
    seen = Observation(images, np.zeros(8, np.float32), "put the milk in the basket")
    late, early, unknown = policy.infer_batch([seen] * 3, [Ask(seed=1, step=30), Ask(seed=2, step=5), Ask(seed=3)])
    assert (late.signals["alarm"], early.signals["alarm"]) == (1.5, 0.25)
    assert "alarm" not in unknown.signals
    assert policy.metadata.extra["alarm"] == {"steps": 20, "alpha": 0.1, "episodes": 50}
    with pytest.raises(ConfigError, match="step must be a whole number of at least 0"):
        Ask(step=-1)
    for wrong in (1.5, float("nan"), True):
        with pytest.raises(ConfigError, match="step must be a whole number"):
            Ask(step=wrong)
    assert Ask(step=np.int64(3)).step == 3


def test_the_report_says_what_it_was_worth(run, tmp_path):
    records = [record for record in read_records(run) if isinstance(record, EpisodeRecord)]
    with_alarm = []
    for record in records:
        steps = np.cumsum([0, *record.executed[:-1]])
        levels = tuple(float(level) for level in steps / (record.steps if record.success else record.steps / 2))
        with_alarm.append(record.model_copy(update={"signals": {"alarm": levels}}))
    (run / EPISODES_FILE).write_text("".join(to_line(record) + "\n" for record in with_alarm))
    failures = sum(not record.success for record in records)
    assert 0 < failures < len(records)
    write_report(load_runs([run]), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"the alarm was raised in {failures} of {failures} failures" in page
    assert f"in 0 of {len(records) - failures} successes" in page
