"""`rdvla eval --policy ws://...`: the same episodes as with the local policy."""

from functools import partial
from pathlib import Path

import pytest
from serve_fakes import QUICK, FakePolicy

from rdvla.cli.policies import connect
from rdvla.envs import list_tasks, make_env
from rdvla.eval.protocol import EvalConfig
from rdvla.eval.records import EpisodeRecord
from rdvla.eval.runner import Resources, evaluate
from rdvla.policy import StopRule
from rdvla.serve.background import serving

STOPS = (StopRule.fixed(3), StopRule("action_l2", max_depth=9))


def play(policy_factory, output: Path, *, workers: int) -> list[tuple]:  # type: ignore[no-untyped-def,type-arg]
    """Return what six toy episodes came to, without the times."""
    config = EvalConfig(
        policy=output.name, suites=("toy",), task_ids=(0, 4), init_states=(0, 1), stops=STOPS, horizons=("5",), seed=3
    )
    records = evaluate(
        config,
        tasks={"toy": list_tasks("toy")},
        policy_factory=policy_factory,
        env_factory=make_env,
        output=output,
        resources=Resources(workers=workers),
    )
    assert all(isinstance(record, EpisodeRecord) for record in records)
    return [
        (r.key, r.episode_seed, r.success, r.steps, r.iterations, r.executed, r.convergence)
        for r in records
        if isinstance(r, EpisodeRecord)
    ]


@pytest.mark.slow
def test_the_same_episodes_as_the_local_policy(tmp_path: Path) -> None:
    local = play(FakePolicy, tmp_path / "local", workers=1)
    with serving(FakePolicy(), QUICK) as server:
        remote = play(partial(connect, server.url), tmp_path / "remote", workers=2)
    assert len(local) == 8
    assert remote == local
