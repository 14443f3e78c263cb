"""`rdvla collect`: have the scripted experts demonstrate tasks, and write a LeRobotDataset v3.0."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from rdvla.cli.options import SimulatorOptions, with_options
from rdvla.cli.parsing import parse_indices, parse_names
from rdvla.cli.pools import PoolOptions
from rdvla.envs import find_suite
from rdvla.errors import ConfigError
from rdvla.policies.sources import LoadOptions, choose_policy

if TYPE_CHECKING:
    from rdvla.collect.collection import CollectStatus, CollectSummary
    from rdvla.collect.player import ExpertFactory

EXIT_INCOMPLETE = 1


@with_options
def collect(
    suite: Annotated[str, typer.Option(help="Suites, e.g. libero_object,libero_spatial or toy.")],
    output: Annotated[Path, typer.Option(help="Folder of the dataset; an unfinished one is continued.")],
    task_ids: Annotated[
        str | None, typer.Option(help="Tasks of every suite, e.g. 3,9 or 0-4 [default: all that the expert solves].")
    ] = None,
    episodes: Annotated[int, typer.Option(help="Demonstrations per task; of CALVIN's chains, chains of five.")] = 40,
    workers: Annotated[int, typer.Option(help="Workers, each with a simulator of its own.")] = 2,
    seed: Annotated[int, typer.Option(help="Decides placements and noise.")] = 0,
    render_every: Annotated[
        int, typer.Option(help="Render at every n-th control step only; the rows between repeat the last images.")
    ] = 1,
    camera_size: Annotated[
        int | None, typer.Option(help="Height and width of the images in pixels [default: those of the suite].")
    ] = None,
    storage: Annotated[Literal["video", "image"], typer.Option(help="Small videos, or exact PNG images.")] = "video",
    keep_staging: Annotated[
        bool, typer.Option(help="Keep the recorded episodes, so that the dataset can be extended later.")
    ] = False,
    take_over_from: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="This policy acts first, for a random number of steps; the expert goes on, and only that is recorded.",
        ),
    ] = None,
    policy_steps: Annotated[
        int | None, typer.Option(help="With --take-over-from: the most steps the policy acts [default: 120].")
    ] = None,
    *,
    loading: LoadOptions,
    where: PoolOptions,
    simulator: SimulatorOptions,
) -> None:
    """Record demonstrations of scripted experts as a LeRobotDataset v3.0.

    Failed episodes are dropped and counted. The same command again continues where it stopped, even after a kill. How a
    checkpoint computes (`--device`, `--statistics`, ...) belongs to `--take-over-from`.
    """
    simulator.apply()
    from rdvla.collect.collection import CollectConfig
    from rdvla.collect.collection import collect as run_collection

    suites = {name: find_suite(name) for name in parse_names(suite, field="suite")}
    config = CollectConfig(
        output=output,
        suites=tuple(suites),
        task_ids=tuple(parse_indices(task_ids, field="task-ids")) if task_ids is not None else None,
        episodes=episodes,
        workers=workers,
        seed=seed,
        render_every=render_every,
        camera_size=camera_size,
        storage=storage,
        keep_staging=keep_staging,
    )
    for each in suites.values():
        each.select(config.task_ids)
    make_expert, takeover = _choose_expert(take_over_from, policy_steps, loading)
    config = replace(config, takeover=takeover)
    pool = where.make()
    console = Console()
    with _progress(console) as progress:
        bar = progress.add_task("starting", total=None, details="")

        def show(status: "CollectStatus") -> None:
            dropped = f"failed {status.failures}  simulator errors {status.errors}  {status.now}"
            details = dropped if status.stage == "collecting" else ""
            progress.update(bar, description=status.stage, completed=status.done, total=status.total, details=details)

        summary = run_collection(config, suites=suites, make_expert=make_expert, pool=pool, on_status=show)
    _print_summary(console, summary)
    if summary.missing:
        reason = "the expert failed too often"
        if take_over_from is not None:
            reason += ", or the policy had solved the task already (try fewer --policy-steps)"
        console.print(f"[bold]{summary.missing} demonstrations are missing[/bold]: {reason}.")
        raise typer.Exit(EXIT_INCOMPLETE)


def _choose_expert(
    checkpoint: str | None, policy_steps: int | None, loading: LoadOptions
) -> "tuple[ExpertFactory, str]":
    """Return what makes the demonstrator of a task, and in words from which policy it takes over, if from any.

    Raises:
        ConfigError: policy_steps below 1, or options of a policy without one.
        CheckpointError: no checkpoint there.
    """
    from rdvla.collect.demonstrators import make_demonstrator, make_takeover
    from rdvla.collect.takeover import MAX_POLICY_STEPS

    if policy_steps is not None and (checkpoint is None or policy_steps < 1):
        raise ConfigError(f"--policy-steps {policy_steps}: give at least 1, and --take-over-from CHECKPOINT.")
    if checkpoint is None:
        if loading != LoadOptions():
            raise ConfigError(f"{loading.label('').strip(' ()')} belongs to a checkpoint; add --take-over-from.")
        return make_demonstrator, ""
    steps = policy_steps or MAX_POLICY_STEPS
    _, digest, make_policy = choose_policy(checkpoint, None, loading)
    factory = partial(make_takeover, make_policy=make_policy, max_policy_steps=steps)
    return factory, f"{loading.label(f'checkpoint {digest}')}, after 0 to {steps} steps"


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[details]}"),
        console=console,
    )


def _print_summary(console: Console, summary: "CollectSummary") -> None:
    table = Table("task", "episodes", "failed", "sim. errors", "mean steps", "s / episode")
    for task in summary.tasks:
        numbers = (task.episodes, task.failures, task.errors, task.mean_steps, task.seconds_per_episode)
        table.add_row(f"{task.suite} {task.task_id}", *map(str, numbers))
    console.print(table)
    console.print(f"{summary.output}: {sum(task.episodes for task in summary.tasks)} episodes, {summary.seconds:.0f} s")
