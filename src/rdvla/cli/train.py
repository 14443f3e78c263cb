"""`rdvla train`."""

from pathlib import Path
from typing import Annotated

import typer

from rdvla.config import apply_overrides, describe, load_yaml


def _help(context: typer.Context, asked: bool) -> None:
    if not asked:
        return
    from rdvla.train.config import TrainConfig

    print(context.get_help())
    print("\nSettings (in the file, or as --KEY=VALUE):")
    for setting in describe(TrainConfig):
        print(f"\n  {setting.key}   {setting.kind} [{setting.default}]\n      {setting.meaning}")
    raise typer.Exit


def train_command(
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="YAML file with the run's settings, ours or the released code's.")],
    help: Annotated[
        bool,
        typer.Option("--help", is_eager=True, callback=_help, help="Show this and every setting, and exit."),
    ] = False,
) -> None:
    """Train a policy; any setting can be overridden: --optimizer.learning_rate=3e-4."""
    from rdvla.cli.screen import Screen, check_evaluation
    from rdvla.train.config import TrainConfig
    from rdvla.train.loop import train
    from rdvla.train.released import is_released, translate

    written = load_yaml(config)
    values, notes = translate(apply_overrides(written, context.args), complete=is_released(written))
    settings = TrainConfig.build(values, source=str(config))
    check_evaluation(settings)
    with Screen(settings) as screen:
        for note in notes:
            screen.warned(note)
        final = train(settings, screen)
        screen.ended(final)
