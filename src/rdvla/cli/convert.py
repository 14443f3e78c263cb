"""`rdvla convert`: between our format and the released layout."""

from pathlib import Path
from typing import Annotated

import typer


def convert_command(
    source: Annotated[str, typer.Argument(help="A checkpoint directory, or owner/name on the Hugging Face hub.")],
    destination: Annotated[Path, typer.Argument(help="A directory that does not exist yet.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    base: Annotated[str | None, typer.Option(help="Base VLM of an un-merged lora_adapter/.")] = None,
) -> None:
    """Convert a released checkpoint to our format, or ours to the released layout. Weights stay bit-equal."""
    from rdvla.checkpoints.hub import resolve
    from rdvla.checkpoints.load import load
    from rdvla.checkpoints.native import is_native, save_native
    from rdvla.checkpoints.official_write import save_official

    checkpoint = load(source, revision=revision, base=base)
    if is_native(resolve(source, revision=revision)):
        save_official(destination, checkpoint)
        layout = "the released layout"
    else:
        save_native(destination, checkpoint)
        layout = "our format"
    count = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    typer.echo(f"{source} -> {destination} ({layout}, {count / 1e6:.1f} M parameters)")
