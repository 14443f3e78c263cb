"""`rdvla push` and `rdvla dataset push`: onto the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from rdvla.hub import CHECKPOINT, DATASET, Repository

Public = Annotated[bool, typer.Option("--public", help="Everybody may see it [default: you alone].")]
Branch = Annotated[str | None, typer.Option(help="Branch to write to, made if there is none [default: main].")]
DryRun = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Write what would be uploaded to this new folder, no more.")
]
Name = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where to, on the hub; made if there is none.")]


def push_command(
    source: Annotated[
        str, typer.Argument(metavar="DIR", help="A policy (ours, or LeRobot's pretrained_model), or a finished run.")
    ],
    name: Name,
    license: Annotated[str, typer.Option(help="The hub's name of the licence, e.g. apache-2.0.")],
    evaluation: Annotated[
        list[Path] | None, typer.Option(help="A folder of 'rdvla eval' with this policy; may be given again.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Hub id of what it was trained on; may be given again.")
    ] = None,
    base_model: Annotated[str | None, typer.Option(help="Hub id of what it was trained from.")] = None,
    public: Public = False,
    revision: Branch = None,
    dry_run: DryRun = None,
) -> None:
    """Upload a policy to the Hugging Face hub: weights, configurations, and a card of what is known about it.

    Log in with `hf auth login` first. Repeating a command that broke off continues it.
    """
    from rdvla.publish.policy import About, push_policy

    to = Repository(name, CHECKPOINT, public=public, revision=revision)
    about = About(license, dataset or (), base_model, evaluation or ())
    commit = push_policy(source, to, about, dry_run=dry_run)
    _say(to, commit, dry_run, f'load_policy("{name}@{commit}")')


def push_dataset_command(
    source: Annotated[str, typer.Argument(metavar="DIR", help="LeRobotDataset v3.0, e.g. of 'rdvla collect'.")],
    name: Name,
    license: Annotated[
        str | None, typer.Option(help="The hub's name of the licence [default: that of the folder's README.md].")
    ] = None,
    public: Public = False,
    revision: Branch = None,
    dry_run: DryRun = None,
) -> None:
    """Upload a dataset to the Hugging Face hub, so that rdvla and LeRobot read it by its name.

    Log in with `hf auth login` first. Repeating a command that broke off continues it.
    """
    from rdvla.data.lerobot_meta import VERSION
    from rdvla.publish.dataset import push_dataset

    to = Repository(name, DATASET, public=public, revision=revision, tag=VERSION)
    commit = push_dataset(source, to, license, dry_run=dry_run)
    _say(to, commit, dry_run, f"rdvla dataset inspect {name}@{commit}")


def _say(to: Repository, commit: str | None, dry_run: Path | None, use: str) -> None:
    if dry_run is not None:
        size = sum(path.stat().st_size for path in dry_run.rglob("*") if path.is_file())
        typer.echo(f"{dry_run} ({size / 1e6:.1f} MB): what would be uploaded to {to.name}")
    else:
        typer.echo(f"{to.name}, {'public' if to.public else 'private'}, commit {commit}: {use}")
