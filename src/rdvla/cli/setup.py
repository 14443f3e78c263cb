"""`rdvla setup`: fetch what a simulator needs and no package brings."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

setup_app = typer.Typer(help="Fetch what a simulator needs and no package brings.", no_args_is_help=True)


@setup_app.callback()
def _group() -> None:
    """Keep `calvin` a subcommand while it is the only one."""


@setup_app.command("calvin")
def calvin_command(
    calvin_data: Annotated[Path | None, typer.Option(help="Folder for the files [default: the user's cache].")] = None,
    source: Annotated[str | None, typer.Option(help="Address of a mirror [default: GitHub].")] = None,
) -> None:
    """Fetch CALVIN's data files (129 files, 14 MB; MIT licence) at the pinned revision, and verify them.

    The same command again continues where it stopped, and replaces files that are not as published.
    """
    from rdvla.envs.calvin import assets, download

    folder = assets.default_folder() if calvin_data is None else calvin_data.expanduser()
    missing = assets.missing_files(folder)
    columns = (TextColumn("files"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("files", total=len(missing))
        download.download(
            folder, source=source or download.default_source(), on_file=lambda _: progress.update(bar, advance=1)
        )
    pinned = assets.manifest()
    named = f"{pinned.repository} {pinned.revision[:7]}"
    print(f"{named}: {len(missing)} files fetched, all {len(pinned.files)} verified in {folder}")
    if calvin_data is not None:
        print(f"Name the folder to other commands: export {assets.VARIABLE}={folder.absolute()}")
    elif named := os.environ.get(assets.VARIABLE, "").strip():
        print(f"Other commands look in '{named}', as {assets.VARIABLE} says: unset it, or repeat with --calvin-data.")
