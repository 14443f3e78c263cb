"""`rdvla play`: watch a policy in a local simulator, in the browser, and change its mind while it acts."""

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from rdvla.cli.options import START_HELP, SimulatorOptions, StopOptions, parse_warm_starts, with_options
from rdvla.cli.parsing import asked_by, choose_starts
from rdvla.cli.serve import THREADS_HELP, limit_threads
from rdvla.errors import ConfigError
from rdvla.policies.sources import EXPERT, LoadOptions, choose_policy

if TYPE_CHECKING:
    from rdvla.envs import Suite
    from rdvla.server.play import LiveLoop


@with_options
def play_command(
    suite: Annotated[str, typer.Option(help="Suite of the task, e.g. libero_object or toy.")],
    task_id: Annotated[int, typer.Option(help="Task of the suite, from 0.")] = 0,
    checkpoint: Annotated[str | None, typer.Option(help="Folder, name of a shipped policy, or hub id.")] = None,
    policy: Annotated[str | None, typer.Option(help="Instead of a checkpoint: expert, or ws://host:port.")] = None,
    port: Annotated[int, typer.Option(help="Port of the page, 0 for a free one.")] = 8000,
    init_states: Annotated[
        str | None,
        typer.Option(
            "--init-states", "--chains", help="Bundled initial states or chains, over and over, e.g. 3 [default: 0-9]."
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Instead: placements that the environment samples, e.g. 5000-5019.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="The suite's rules, where it has several [default: its usual ones].")
    ] = "",
    episodes: Annotated[int | None, typer.Option(help="End after so many [default: never].")] = None,
    horizon: Annotated[
        str | None,
        typer.Option(help="Actions executed per decision: a number or a rule [default: 5, or the protocol's way]."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Control steps per second, at most [default: the robot's].")
    ] = None,
    show_every: Annotated[int, typer.Option(help="Render for the page every n-th step; 0 only at decisions.")] = 2,
    threads: Annotated[int | None, typer.Option(help=THREADS_HELP)] = None,
    start: Annotated[str, typer.Option(help=START_HELP)] = "noise",
    *,
    stopping: StopOptions,
    loading: LoadOptions,
    simulator: SimulatorOptions,
) -> None:
    """Play a task again and again and show it live at http://127.0.0.1:PORT."""
    simulator.apply()
    from rdvla.envs import InitState, Seed, Start, find_suite
    from rdvla.envs.fit import require_fit
    from rdvla.eval.protocol import check_init_states
    from rdvla.eval.rollout import EnvBound
    from rdvla.execution import SYNCHRONOUS, Executor, make_strategy
    from rdvla.horizons import DEFAULT_HORIZON, make_horizon
    from rdvla.policy import Ask
    from rdvla.robot.client import RemotePolicy
    from rdvla.server.background import serving
    from rdvla.server.config import ServeConfig
    from rdvla.server.live import LiveFeed
    from rdvla.server.play import LiveLoop, Shown

    if show_every < 0:
        raise ConfigError(f"--show-every must be at least 0, found {show_every}.")
    if rate is not None and not rate > 0:
        raise ConfigError(f"--rate must be above 0, found {rate}.")
    if episodes is not None and episodes < 1:
        raise ConfigError(f"--episodes must be at least 1, found {episodes}.")
    settings = ServeConfig.build({"port": port, "web": True}, source="the command line")
    rule, (warm_start, *others) = stopping.rule(), parse_warm_starts(start)
    if others:
        raise ConfigError(f"--start {start}: one is needed here.")
    named = choose_starts(None, init_states, seeds)
    states = named.get("init_states", ())
    starts: list[Start] = [*map(InitState, states), *map(Seed, named.get("seeds", ()))]
    found = find_suite(suite, protocol)
    check_init_states(found, [task_id], states, asked_by(None, init_states, max(states, default=0)))
    if policy == EXPERT and (rule, warm_start, horizon) != (None, "noise", None):
        raise ConfigError(
            "the expert does not iterate and decides at every step; drop --depth, --stop, --start and --horizon."
        )
    if horizon is not None and found.strategy:
        raise ConfigError(f"protocol {protocol} has chunks executed by {found.strategy}; drop --horizon.")
    chunked = SYNCHRONOUS if policy == EXPERT else found.strategy or SYNCHRONOUS
    strategy = make_strategy(chunked, make_horizon(horizon or DEFAULT_HORIZON))
    if threads is not None and checkpoint is None:
        raise ConfigError(f"--threads {threads} is for a checkpoint; {policy} computes elsewhere, or not at all.")
    _, _, make_policy = choose_policy(checkpoint, policy, loading, steering=True)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("rdvla.robot.loop").setLevel(logging.ERROR)  # a simulator may be slower than --rate
    if checkpoint is not None:
        limit_threads(threads)
    feed = LiveFeed(simulator=True)
    decider = make_policy()
    if not isinstance(decider, EnvBound):
        require_fit(decider.metadata, found)
    env = found.make_env(task_id)
    try:
        if isinstance(decider, EnvBound):
            decider.bind(env)
            env.reset(starts[0])  # the server asks for a decision before it is ready
            decider.reset()
        with serving(decider, settings, live=feed) as server, RemotePolicy(server.url) as remote:
            print(f"{env.task.instruction}\nlive page: {server.url.replace('ws', 'http', 1)}", flush=True)
            player = LiveLoop(
                env,
                Executor(
                    Shown(decider, remote) if isinstance(decider, EnvBound) else remote,
                    strategy,
                    Ask(rule, warm_start=warm_start),
                ),
                feed,
                starts=starts,
                rate_hz=rate or env.embodiment.control_hz,
                show_every=show_every,
            )
            with contextlib.suppress(KeyboardInterrupt):
                player.run(episodes)
            print(f"{player.solved} of {player.finished} episodes solved{_in_a_row(player, found)}")
    finally:
        env.close()


def _in_a_row(player: "LiveLoop", suite: "Suite") -> str:
    if suite.num_stages == 1 or not player.finished:
        return ""
    return f", {player.stages_solved / player.finished:.2f} of {suite.num_stages} tasks in a row on average"
