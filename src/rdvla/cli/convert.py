"""`rdvla convert`: between our format, the released layout and LeRobot's."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from rdvla.files import require_new_folder
from rdvla.types import GripperConvention


def convert_command(
    source: Annotated[str, typer.Argument(help="A checkpoint directory, or owner/name on the Hugging Face hub.")],
    destination: Annotated[Path, typer.Argument(help="A directory that does not exist yet.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    base: Annotated[str | None, typer.Option(help="Base VLM of an un-merged lora_adapter/.")] = None,
    gripper: Annotated[
        GripperConvention | None, typer.Option(help="Of a released source that does not say: what its last action is.")
    ] = None,
    to: Annotated[
        Literal["native", "released", "lerobot"] | None,
        typer.Option(help="Format to write [default: native, or released if the source is native]."),
    ] = None,
) -> None:
    """Convert a checkpoint to another format. Weights stay bit-equal."""
    from rdvla.checkpoints.checkpoint import require_gripper
    from rdvla.checkpoints.lerobot import save_lerobot
    from rdvla.checkpoints.load import find, load
    from rdvla.checkpoints.native import is_native, save_native
    from rdvla.checkpoints.official_write import save_official

    require_new_folder(destination)
    checkpoint = load(source, revision=revision, base=base, gripper=gripper)
    require_gripper(checkpoint, gripper)
    if to is None:
        to = "released" if is_native(find(source, revision=revision)) else "native"
    {"native": save_native, "released": save_official, "lerobot": save_lerobot}[to](destination, checkpoint)
    count = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    typer.echo(
        f"{source} -> {destination} ({to}, {count / 1e6:.1f} M parameters, gripper {checkpoint.actions.gripper})"
    )
