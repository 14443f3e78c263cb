"""`rdvla eval`: play episodes, log every one, print a table of success rates."""

import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rdvla.cli.options import (
    START_HELP,
    SimulatorOptions,
    StopOptions,
    parse_budgets,
    parse_warm_starts,
    with_options,
)
from rdvla.cli.parsing import asked_by, choose_starts, parse_indices, parse_names
from rdvla.cli.pools import PoolOptions
from rdvla.envs import Suite, find_suite
from rdvla.errors import ConfigError
from rdvla.eval.protocol import EvalConfig, check_init_states
from rdvla.eval.records import AnyRecord, EpisodeRecord, ErrorRecord
from rdvla.eval.runner import Resources, evaluate
from rdvla.eval.summary import Summary, group_by, summarise_group
from rdvla.eval.video import require_av
from rdvla.execution import SYNCHRONOUS
from rdvla.horizons import DEFAULT_HORIZON
from rdvla.policies.sources import EXPERT, LoadOptions, choose_policy
from rdvla.policy import Policy
from rdvla.tables import align

STRATEGY_HELP = (
    "How chunks are executed: synchronous (stand still while deciding), background (ask when 4 actions are left; "
    "background:N when N are), ensembling (average the plans; ensembling:N asks at every N-th step), calvin_released "
    "[default: the protocol's, else synchronous]."
)


@with_options
def eval_command(
    suite: Annotated[str, typer.Option(help="Suites, e.g. libero_object,libero_spatial or toy.")],
    output: Annotated[Path, typer.Option(help="Folder of the evaluation; an unfinished one is continued.")],
    checkpoint: Annotated[str | None, typer.Option(help="Folder, name of a shipped policy, or hub id.")] = None,
    policy: Annotated[str | None, typer.Option(help="Instead of a checkpoint: expert, or ws://host:port.")] = None,
    noise: Annotated[bool, typer.Option("--noise", help="Of the expert: disturb it as `rdvla collect` does.")] = False,
    task_ids: Annotated[str | None, typer.Option(help="Tasks of every suite, e.g. 3,9 or 0-4 [default: all].")] = None,
    episodes: Annotated[int | None, typer.Option(help="Episodes per task and rule [default: 10].")] = None,
    init_states: Annotated[
        str | None,
        typer.Option("--init-states", "--chains", help="Bundled initial states or chains, e.g. 10-19 [default: 0-9]."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Instead: placements that the environment samples, e.g. 5000-5019.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="The suite's rules, where it has several [default: its usual ones].")
    ] = "",
    budget_ms: Annotated[
        str | None, typer.Option(help="Milliseconds for a decision, e.g. 50 (to compare: 50,100) [default: no limit].")
    ] = None,
    start: Annotated[str, typer.Option(help=START_HELP)] = "noise",
    horizon: Annotated[
        str | None,
        typer.Option(
            help="Actions executed per decision: a number or a rule such as linear_decay [default: 5, as released "
            "for LIBERO; a policy's model card says what suits it]."
        ),
    ] = None,
    strategy: Annotated[str | None, typer.Option(help=STRATEGY_HELP)] = None,
    delay: Annotated[
        str, typer.Option(help="Control steps from question to answer, e.g. 2 or 0,2,4; meanwhile the world goes on.")
    ] = "0",
    seed: Annotated[int, typer.Option(help="Seed of the scratchpads.")] = 7,
    trace_depth: Annotated[
        int | None, typer.Option(help="Keep what every rule would have seen up to so many iterations, e.g. 32.")
    ] = None,
    video: Annotated[int, typer.Option(help="Film this many episodes per task and rule.")] = 0,
    workers: Annotated[int, typer.Option(help="Workers, each with a simulator and a policy of its own.")] = 1,
    *,
    stopping: StopOptions,
    loading: LoadOptions,
    where: PoolOptions,
    simulator: SimulatorOptions,
) -> None:
    """Evaluate a policy: success rates with 95 % intervals, one line per episode in OUTPUT/episodes.jsonl.

    The same command again continues where it stopped. `--depth`, `--stop` and `--budget-ms` may be combined: every
    rule plays the same initial states with the same seeds.
    """
    simulator.apply()
    suites = {name: find_suite(name, protocol) for name in parse_names(suite, field="suite")}
    disturbed = _disturb(policy) if noise else None
    stops, budgets, warm_starts = stopping.rules(), parse_budgets(budget_ms), parse_warm_starts(start)
    if policy == EXPERT and (stops, budgets, warm_starts, trace_depth) != ((None,), (None,), ("noise",), None):
        raise ConfigError("the expert does not iterate; drop --depth, --stop, --budget-ms, --start and --trace-depth.")
    if policy == EXPERT and horizon not in (None, "1"):
        raise ConfigError(f"the expert decides at every step; drop --horizon {horizon}.")
    if strategy is None:
        strategy = SYNCHRONOUS if policy == EXPERT else _usual_strategy(suites.values())
    strategies = parse_names(strategy, field="strategy")
    if horizon is not None and SYNCHRONOUS not in strategies:
        raise ConfigError(
            f"--horizon belongs to the strategy synchronous, not {strategy}; drop it, or add --strategy {SYNCHRONOUS}."
        )
    starts = choose_starts(episodes, init_states, seeds)
    config = EvalConfig(
        policy="",  # read last: hashing a checkpoint takes a while
        suites=tuple(suites),
        task_ids=parse_indices(task_ids, field="task-ids") if task_ids is not None else None,
        **starts,
        protocol=next((each.protocol for each in suites.values() if each.protocol), ""),
        stops=stops,
        budgets_ms=budgets,
        warm_starts=warm_starts,
        horizons=parse_names(horizon or ("1" if policy == EXPERT else DEFAULT_HORIZON), field="horizon"),
        strategies=strategies,
        delays=parse_indices(delay, field="delay"),
        trace_depth=trace_depth,
        seed=seed,
        videos=video,
    )
    asked = asked_by(episodes, init_states, max(config.init_states, default=0))
    for each in suites.values():
        check_init_states(each, config.task_ids, config.init_states, asked)
    if video:
        require_av()
    resources = Resources(workers=workers, pool=where.make(), command=("rdvla", *sys.argv[1:]))
    name, digest, policy_factory = choose_policy(checkpoint, policy, loading)
    if disturbed is not None:
        name, policy_factory = disturbed
    config = config.model_copy(update={"policy": name, "policy_digest": digest})
    with _Reporter() as reporter:
        records = evaluate(
            config,
            suites=suites,
            policy_factory=policy_factory,
            output=output,
            resources=resources,
            on_record=reporter,
        )
    print(format_tables(records))
    print(f"\n{output / 'episodes.jsonl'}\nReport: rdvla report {shlex.quote(str(output))} --output report.html")
    if any(isinstance(record, ErrorRecord) for record in records):
        print("Some episodes could not be played; repeat the command to try them again.", file=sys.stderr)
        raise typer.Exit(1)


def _usual_strategy(suites: Iterable[Suite]) -> str:
    """Return how the protocol of all of them has chunks executed.

    Raises:
        ConfigError: not all of them the same.
    """
    found = {suite.strategy or SYNCHRONOUS for suite in suites}
    if len(found) > 1:
        raise ConfigError(
            f"the suites' protocols have chunks executed differently ({', '.join(sorted(found))}); "
            "evaluate them one by one, or give --strategy."
        )
    return found.pop()


def _disturb(policy: str | None) -> tuple[str, Callable[[], Policy]]:
    """Return name and factory of the expert with the noise of demonstrations.

    Raises:
        ConfigError: the policy is not the expert.
    """
    from rdvla.collect.demonstrators import DisturbedExpert

    if policy != EXPERT:
        raise ConfigError("--noise disturbs the expert only; add --policy expert, or drop it.")
    return f"{EXPERT} (noise)", DisturbedExpert


class _Reporter:
    """Shows progress on stderr: a bar in a terminal, else one line per episode."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("episodes", total=None)

    def __enter__(self) -> "_Reporter":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def __call__(self, record: AnyRecord, done: int, total: int) -> None:
        line = f"{record.suite} task {record.task_id} {record.start} {record.rule}: {_describe(record)}"
        if self._console.is_terminal:
            self._progress.update(self._task, completed=done, total=total, description=line)
        else:
            print(f"{done}/{total} {line}", file=sys.stderr, flush=True)


def _describe(record: AnyRecord) -> str:
    if isinstance(record, EpisodeRecord):
        return f"{'success' if record.success else 'failure'} after {record.steps} steps ({record.wall_s:.1f} s)"
    return f"error after {record.attempts} attempts: {record.error}"


def format_tables(records: Sequence[AnyRecord]) -> str:
    """Return plain-text tables: every rule in one line, scores of chains if there are any, successes per task."""
    several = len({record.execution for record in records}) > 1

    def name(record: AnyRecord) -> str:
        return f"{record.rule} / {record.execution}" if several else record.rule

    rules = group_by(records, name)
    rows = [["rule", "success", "95 % interval", "n", "errors", "iterations", "decide ms p50", "p95"]]
    rows += [[rule, *_cells(summarise_group(group))] for rule, group in rules.items()]
    tasks = group_by(records, lambda record: (record.suite, record.task_id))
    by_task = [["task", *rules]]
    for (suite, task_id), group in tasks.items():
        summaries = [summarise_group(record for record in group if name(record) == rule) for rule in rules]
        by_task.append([f"{suite} {task_id}", *(f"{s.rate.successes}/{s.rate.n}" for s in summaries)])
    suites = {record.suite for record in records}
    chains = group_by(records, lambda record: f"{record.suite}, {name(record)}" if len(suites) > 1 else name(record))
    return "\n\n".join(align(table) for table in (rows, *_chain_tables(chains), by_task) if table)


def _chain_tables(rules: Mapping[str, Sequence[AnyRecord]]) -> list[list[list[str]]]:
    """Return, for episodes of several stages, how many were solved in a row, and how often each goal was."""
    found = {rule: summarise_group(group).chain for rule, group in rules.items()}
    scores = {rule: score for rule, score in found.items() if score is not None}
    if not scores:
        return []
    longest = max(len(score.at_least) for score in scores.values())
    in_a_row = [["rule", *(f"{count} in a row" for count in range(1, longest + 1)), "average", "95 % interval", "n"]]
    for rule, score in scores.items():
        rates = [f"{rate.value:.1%}" for rate in score.at_least]
        average = [f"{score.average.value:.2f}", f"{score.average.low:.2f} - {score.average.high:.2f}"]
        in_a_row.append([rule, *rates, *[""] * (longest - len(rates)), *average, str(score.average.n)])
    by_goal = [["goal", *scores]]
    for goal in sorted({goal for score in scores.values() for goal in score.goals}):
        rates = [f"{rate.successes}/{rate.n}" if rate else "-" for rate in (s.goals.get(goal) for s in scores.values())]
        by_goal.append([goal, *rates])
    return [in_a_row, by_goal]


def _cells(summary: Summary) -> list[str]:
    rate = summary.rate
    p50, p95 = summary.latency_ms.get("decide", (None, None))
    return [
        f"{rate.value:.1%}" if rate.n else "-",
        f"{rate.low:.1%} - {rate.high:.1%}",
        str(rate.n),
        str(summary.errors),
        "-" if summary.mean_iterations is None else f"{summary.mean_iterations:.2f}",
        *("-" if value is None else f"{value:.1f}" for value in (p50, p95)),
    ]
