"""`rdvla train`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from rdvla.config import apply_overrides, load_yaml


def train_command(
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="YAML file with the run's settings.")],
) -> None:
    """Train a policy; any setting can be overridden: --optimizer.learning_rate=3e-4."""
    from rich.console import Console

    from rdvla.train.config import TrainConfig
    from rdvla.train.loop import train

    settings = TrainConfig.build(apply_overrides(load_yaml(config), context.args), source=str(config))
    console = Console()

    def report(step: int, numbers: Mapping[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        console.print(f"[bold]{step:>7}[/bold]/{settings.max_steps}  {shown}", highlight=False, soft_wrap=True)

    with console.status("opening the dataset") as status:

        def decoding(done: int, total: int) -> None:
            status.update(f"decoding images once: {done}/{total} episodes")

        def report_and_stop(step: int, numbers: Mapping[str, float]) -> None:
            status.stop()
            report(step, numbers)

        final = train(settings, report=report_and_stop, decoding=decoding)
    console.print(f"policy: {final}")
