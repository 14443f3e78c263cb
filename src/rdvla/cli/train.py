"""`rdvla train`."""

from pathlib import Path
from typing import Annotated

import typer

from rdvla.config import apply_overrides, load_yaml


def train_command(
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="YAML file with the run's settings, ours or the released code's.")],
) -> None:
    """Train a policy; any setting can be overridden: --optimizer.learning_rate=3e-4."""
    from rdvla.cli.training import Screen
    from rdvla.train.config import TrainConfig
    from rdvla.train.loop import train
    from rdvla.train.released import translate

    values, notes = translate(apply_overrides(load_yaml(config), context.args))
    settings = TrainConfig.build(values, source=str(config))
    with Screen(settings) as screen:
        for note in notes:
            screen.warned(note)
        final = train(settings, screen)
        screen.ended(final)
