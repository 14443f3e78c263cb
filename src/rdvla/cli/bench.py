"""`rdvla bench`: how fast is it here, against the released computation and the machine's limits?"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rdvla.errors import ConfigError, StorageError
from rdvla.files import write_json
from rdvla.hub import SHIPPED
from rdvla.stops import StopRule

if TYPE_CHECKING:
    from rdvla.bench.table import Table

EXIT_NOT_HELD = 1

bench_app = typer.Typer(help="Measure; every section prints a table and, with --json, writes every number to a file.")
server_app = typer.Typer(help="The policy server over loopback; the exit code is 1 if a bound is not held.")
bench_app.add_typer(server_app, name="server")

Json = Annotated[Path | None, typer.Option(help="Also write every number to this file.")]
Checkpoint = Annotated[Path, typer.Option(help="Folder or name of the small policy.")]
Repeats = Annotated[int, typer.Option(min=1, help="Repetitions of each timing; medians are shown.")]
Depth = Annotated[int, typer.Option(min=1, help="Iterations of every decision.")]


@bench_app.callback(invoke_without_command=True)
def bench_command(
    context: typer.Context,
    checkpoint: Checkpoint = Path(SHIPPED),
    only: Annotated[
        str | None,
        typer.Option(
            help="Of head,decision,memory,batch,training, and episodes per minute in LIBERO (simulator) and CALVIN "
            "(calvin) [default: all but the last two]."
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Also the whole released network: 12 GB, some minutes.")] = False,
    simulator: Annotated[bool, typer.Option("--simulator", help="Also episodes per minute in LIBERO.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="The small policy alone, once: some seconds.")] = False,
    repeats: Annotated[int, typer.Option(help="Repetitions of each timing; medians are shown.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Threads of torch [default: its own choice].")] = None,
    processor_time: Annotated[
        bool, typer.Option("--processor-time", help="Of one thread, not the clock's: for a busy machine.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where both sides compute, e.g. cuda.")] = "cpu",
    compile: Annotated[bool, typer.Option("--compile", help="Also ours compiled (on a GPU: CUDA graphs).")] = False,
    json: Json = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw them into this HTML file.")] = None,
) -> None:
    """Time ours against the released computation, interleaved, with the physical floor beside it.

    Released sizes have random weights. Before anything is timed, both must give the same actions (2e-5). The commands
    below measure everything else that the documentation claims.
    """
    if context.invoked_subcommand is not None:
        given = {name: context.get_parameter_source(name) for name in context.params}
        if misplaced := [name for name, source in given.items() if source is not None and source.name == "COMMANDLINE"]:
            option = f"--{misplaced[0].replace('_', '-')}"
            raise ConfigError(f"{option} is ignored before '{context.invoked_subcommand}'; give it after that name.")
        return
    from rdvla.bench import suite
    from rdvla.bench.plot import write_plot
    from rdvla.bench.text import format_result

    _check_folders(json, plot)
    chosen = tuple(part.strip() for part in only.split(",")) if only is not None else suite.USUAL
    if simulator and "simulator" not in chosen:
        chosen = (*chosen, "simulator")
    plan = suite.Plan.usual(
        checkpoint,
        chosen=chosen,
        full=full,
        repeats=repeats,
        threads=threads,
        processor_time=processor_time,
        device=device,
        compile=compile,
    )
    result = suite.run(plan.quick() if quick else plan, _tell)
    print("\n" + format_result(result))
    if json is not None:
        result.write(json)
        print(f"\nEvery number: {json}")
    if plot is not None:
        write_plot(result, plot)
        print(f"Figures: {plot}")


@bench_app.command("images")
def images_command(repeats: Repeats = 200, json: Json = None) -> None:
    """Processor time of the image path, beside PIL doing the same steps inexactly."""
    from rdvla.bench.images import measure_images

    _show(lambda: measure_images(repeats), json)


@bench_app.command("loader")
def loader_command(
    dataset: Annotated[Path | None, typer.Argument(help="A LeRobotDataset [default: a small one is recorded].")] = None,
    samples: Annotated[int, typer.Option(min=16, help="Samples per measurement.")] = 512,
    size: Annotated[int, typer.Option(min=1, help="Height and width of the images in pixels.")] = 128,
    json: Json = None,
) -> None:
    """Samples per second of training's own batches, with the frame cache and without."""
    from rdvla.bench.loader import measure_loader

    _show(lambda: [measure_loader(dataset, samples, size)], json)


@bench_app.command("saving")
def saving_command(
    checkpoint: Checkpoint = Path(SHIPPED),
    suite: Annotated[str, typer.Option(help="Where the policy looks.")] = "libero_object",
    observations: Annotated[int, typer.Option(min=1, help="How often it looks.")] = 24,
    repeats: Repeats = 3,
    json: Json = None,
) -> None:
    """What every way to decide in less time changes: time, iterations, actions.

    Plays initial states with the plain policy, keeps what it saw, and decides all of that again in each way from the
    same scratchpads. The last row compares with what another scratchpad changes.
    """
    from rdvla.bench.saving import measure_saving

    _show(lambda: [measure_saving(checkpoint, suite, observations, repeats)], json)


@bench_app.command("training-memory")
def training_memory_command(
    batch: Annotated[int, typer.Option(min=1, help="Samples in a step.")] = 16, depth: Depth = 12, json: Json = None
) -> None:
    """Memory of a training step of the released size, counted on tensors without content; no GPU needed."""
    from rdvla.bench.training_memory import measure_memory
    from rdvla.model.config import rdvla_0_5b

    _show(lambda: [measure_memory(rdvla_0_5b(), batch, depth, _tell)], json)


@bench_app.command("scheduling")
def scheduling_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of rdvla eval, for the lengths of their episodes.")],
    workers: Annotated[str, typer.Option(help="Numbers of workers.")] = "1,2,4,8,16,32,64,128,256",
    per_task: Annotated[
        int | None,
        typer.Option(min=1, help="Episodes of each task, drawn from its lengths [default: each once]."),
    ] = None,
    worker_s: Annotated[float, typer.Option(min=0, help="Seconds to start a worker and load its policy.")] = 8.0,
    env_s: Annotated[float, typer.Option(min=0, help="Seconds to start an environment.")] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="Draws the lengths.")] = 0,
    json: Json = None,
) -> None:
    """How throughput grows with workers: the real driver on a made-up clock, with recorded episode lengths."""
    from rdvla.bench.scheduling import StartUpCosts, measure_scheduling, recorded_episodes
    from rdvla.cli.parsing import parse_indices

    counts = parse_indices(workers, field="workers")
    if 0 in counts:
        raise ConfigError(f"workers '{workers}': at least 1 has to work.")
    episodes, costs = recorded_episodes(runs, per_task, seed), StartUpCosts(worker_s, env_s)
    _show(lambda: [measure_scheduling(episodes, counts, costs)], json)


@server_app.command("soak")
def soak_command(
    checkpoint: Checkpoint = Path(SHIPPED),
    minutes: Annotated[float, typer.Option(min=0.01, help="How long.")] = 10,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests per second.")] = 20,
    depth: Depth = 12,
    json: Json = None,
) -> None:
    """One client at a steady rate: latencies, errors, memory of the server."""
    from rdvla.bench.server import soak

    _judge(lambda stop: soak(str(checkpoint), minutes, rate, stop), depth, json)


@server_app.command("throughput")
def throughput_command(
    checkpoint: Checkpoint = Path(SHIPPED),
    seconds: Annotated[float, typer.Option(min=0.1, help="How long, with one client and with all.")] = 30,
    clients: Annotated[int, typer.Option(min=2, max=32, help="Clients at once, as many as a server takes.")] = 8,
    depth: Depth = 12,
    json: Json = None,
) -> None:
    """Requests per second of one client and of several, each asking again as soon as it is answered."""
    from rdvla.bench.server import throughput

    _judge(lambda stop: throughput(str(checkpoint), clients, seconds, stop), depth, json)


@server_app.command("restart")
def restart_command(
    checkpoint: Checkpoint = Path(SHIPPED),
    suite: Annotated[str, typer.Option(help="Where the episode is played.")] = "libero_object",
    task_id: Annotated[int, typer.Option(min=0, help="Its task.")] = 0,
    steps: Annotated[int | None, typer.Option(min=6, help="Cut it after so many [default: play to its end].")] = None,
    depth: Depth = 12,
    json: Json = None,
) -> None:
    """Kill the server twice amid a decision of an episode and start it again: the same actions as without."""
    from rdvla.bench.server import restart

    _judge(lambda stop: restart(str(checkpoint), suite, task_id, steps, stop), depth, json)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _check_folders(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise StorageError(f"cannot write '{path}': there is no directory '{path.parent}'.")


def _show(measure: "Callable[[], Sequence[Table]]", path: Path | None) -> None:
    _check_folders(path)
    tables = measure()
    print("\n\n".join(table.text() for table in tables))
    _write([table.document() for table in tables], path)


def _judge(measure: "Callable[[StopRule], Mapping[str, Any]]", depth: int, path: Path | None) -> None:
    _check_folders(path)
    result = measure(StopRule.fixed(depth))
    _print_nested(result)
    _write(result, path)
    if not result["held"]:
        raise typer.Exit(EXIT_NOT_HELD)


def _print_nested(result: Mapping[str, Any], indent: str = "") -> None:
    for key, value in result.items():
        if isinstance(value, Mapping):
            print(f"{indent}{key}")
            _print_nested(value, indent + "  ")
        else:
            print(f"{indent}{key:<{26 - len(indent)}} {value}")


def _write(document: object, path: Path | None) -> None:
    from rdvla.bench.machine import describe

    if path is not None:
        write_json(path, {"machine": describe("cpu"), "result": document}, indent=1)
        print(f"\nEvery number: {path}")
