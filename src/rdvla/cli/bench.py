"""`rdvla bench`: how fast is it here, against the released computation and the machine's limits?"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rdvla.hub import SHIPPED


def bench_command(
    checkpoint: Annotated[Path, typer.Option(help="Folder or name of the small policy.")] = Path(SHIPPED),
    only: Annotated[
        str | None,
        typer.Option(help="Of head,decision,memory,batch,training,simulator [default: all but the simulator]."),
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
    json: Annotated[Path | None, typer.Option(help="Also write every number to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw them into this HTML file.")] = None,
) -> None:
    """Time ours against the released computation, interleaved, with the physical floor beside it.

    Released sizes have random weights. Before anything is timed, both must give the same actions (2e-5).
    """
    from rdvla.bench import suite
    from rdvla.bench.plot import write_plot
    from rdvla.bench.table import format_result
    from rdvla.errors import StorageError

    for path in (json, plot):
        if path is not None and not path.parent.is_dir():
            raise StorageError(f"cannot write '{path}': there is no directory '{path.parent}'.")
    chosen = tuple(part.strip() for part in only.split(",")) if only is not None else suite.SECTIONS[:-1]
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
    result = suite.run(plan.quick() if quick else plan, lambda line: print(line, file=sys.stderr, flush=True))
    print("\n" + format_result(result))
    if json is not None:
        result.write(json)
        print(f"\nEvery number: {json}")
    if plot is not None:
        write_plot(result, plot)
        print(f"Figures: {plot}")
