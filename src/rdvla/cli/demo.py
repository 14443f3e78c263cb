"""`rdvla demo`: the shipped policy in the real simulator, at several depths, with a report at the end."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from rdvla.cli.eval import eval_command
from rdvla.cli.report import report_command
from rdvla.errors import ConfigError


def demo_command(
    checkpoint: Annotated[
        str, typer.Option(help="Checkpoint folder of the policy, or its name.")
    ] = "rdvla_tiny_libero_40",
    output: Annotated[Path, typer.Option(help="Folder of the results; an earlier demo there is replaced.")] = Path(
        "runs/demo"
    ),
    workers: Annotated[int, typer.Option(help="Worker processes.")] = 2,
) -> None:
    """Watch the policy think: a task of each LIBERO suite at depth 1, 4, 12 and adaptively; ends with a report."""
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        if not (output / "episodes.jsonl").is_file():
            raise ConfigError(f"'{output}' holds something other than an earlier demo; choose another --output.")
        shutil.rmtree(output)
    print(
        "The sixth task of each suite from the first start never played, at three depths and with adaptive stopping;\n"
        "a few minutes on 2 cores."
    )
    eval_command(
        suite="libero_object,libero_spatial,libero_goal,libero_10",
        task_ids="5",
        init_states="10",
        depth="1,4,12",
        stop="action_mse",
        delta="1e-4",
        horizon="4",
        checkpoint=checkpoint,
        output=output,
        video=1,
        workers=workers,
    )
    page = output / "report.html"
    report_command([output], page)
    print(f"\nOpen {page.resolve()} in a browser.")
