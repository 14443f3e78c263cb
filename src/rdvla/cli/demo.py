"""`rdvla demo`: the shipped policy in the real simulator, at several depths, with a report at the end."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from rdvla.cli.eval import eval_command
from rdvla.cli.report import report_command
from rdvla.errors import ConfigError
from rdvla.eval.records import RUN_FILE
from rdvla.policies.sources import LoadOptions, choose_policy

SUITES = ("libero_object", "libero_spatial", "libero_goal", "libero_10")
TASK, STATE = 5, 10
"""The sixth task of each suite and the first bundled state beyond those that policies are measured on."""


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
        if not _is_demo(output):
            raise ConfigError(f"'{output}' holds something other than an earlier demo; choose another --output.")
        choose_policy(Path(checkpoint), None, LoadOptions())  # a mistake costs nothing
        shutil.rmtree(output)
    print(
        f"The sixth task of each suite from bundled state {STATE}, chosen before it was played, at three depths and\n"
        "with adaptive stopping; a few minutes on 2 cores."
    )
    eval_command(
        suite=",".join(SUITES),
        task_ids=str(TASK),
        init_states=str(STATE),
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
    report_command([str(output)], page)
    print(f"\nOpen {page.resolve()} in a browser.")


def _is_demo(folder: Path) -> bool:
    """Whether an earlier demo wrote it, and not another evaluation."""
    try:
        config = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["config"]
        played = config["suites"], config["task_ids"], config["init_states"], config["videos"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return played == (list(SUITES), [TASK], [STATE], 1)
