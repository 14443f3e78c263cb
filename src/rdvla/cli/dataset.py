"""`rdvla dataset`: convert other formats to LeRobotDataset v3.0, and look at what a dataset holds."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from rdvla.errors import ConfigError, DatasetError
from rdvla.hub import DATASET, resolve

if TYPE_CHECKING:
    from rdvla.data.convert import EpisodeSource
    from rdvla.data.findings import Finding
    from rdvla.data.libero_hdf5 import LiberoDemonstrations
    from rdvla.data.summary import DatasetSummary

_COLUMNS = ("mean", "std", "min", "q01", "q99", "max")

EXIT_UNUSABLE = 1

dataset_app = typer.Typer(help="Convert and inspect datasets.", no_args_is_help=True, rich_markup_mode=None)


@dataset_app.command("convert")
def convert_dataset(
    source: Annotated[
        str,
        typer.Argument(
            help="LeRobotDataset v2.1 (a folder, or owner/name[@revision] on the hub), RLDS, CALVIN, or LIBERO's "
            "*_demo.hdf5 files."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="Folder of the new LeRobotDataset v3.0.")],
    storage: Annotated[
        Literal["image", "video"], typer.Option(help="Encoded images kept bit for bit, or small videos.")
    ] = "image",
    split: Annotated[str | None, typer.Option(help="RLDS, CALVIN: the split to read [default: train].")] = None,
    fps: Annotated[float | None, typer.Option(help="RLDS: steps per second, unless LIBERO or CALVIN.")] = None,
    regenerate: Annotated[
        bool, typer.Option("--regenerate", help="HDF5: repeat the demonstrations in the simulator.")
    ] = False,
    camera_size: Annotated[
        int | None, typer.Option(help="With --regenerate: height and width in pixels [default: 256].")
    ] = None,
) -> None:
    """Write LeRobotDataset v2.1, RLDS, CALVIN, or LIBERO's demonstrations without no-ops, as LeRobotDataset v3.0."""
    from rdvla.data.convert import convert
    from rdvla.data.lerobot_meta import MAX_FPS

    if fps is not None and not 0 < fps < MAX_FPS:
        raise ConfigError(f"--fps must be above 0 and below {MAX_FPS}, found {fps}.")
    if camera_size is not None and not regenerate:
        raise ConfigError("--camera-size belongs to --regenerate; pictures that are there keep their size.")
    if camera_size is None and regenerate:
        camera_size = 256
    console = Console()
    root, name = _find(source)
    episodes = _open_source(root, name, split, fps, camera_size)
    with _progress(console, "episodes") as progress:
        info = convert(episodes, output, storage=storage, progress=progress)
    dropped = getattr(episodes, "dropped", 0)
    console.print(
        f"{output}: {info.total_episodes} episodes, {info.total_frames} frames", highlight=False, soft_wrap=True
    )
    if dropped:
        console.print(f"{dropped} replays did not solve their task and were dropped", highlight=False)


@dataset_app.command("inspect")
def inspect_dataset(
    dataset: Annotated[str, typer.Argument(help="LeRobotDataset v3.0: a folder, or owner/name[@revision] on the hub.")],
    output: Annotated[Path | None, typer.Option(help="Also write one self-contained HTML page.")] = None,
    samples: Annotated[int, typer.Option(help="Episodes whose first frames the page shows.")] = 6,
) -> None:
    """Say what a dataset holds: episodes, lengths, tasks, states and actions, first frames, and what looks wrong.

    The exit code is 1 if it cannot be used as it is.
    """
    from rdvla.data.checks import check_dataset, unusable
    from rdvla.data.findings import Finding
    from rdvla.data.summary import summarise

    console = Console()
    if samples < 1:
        raise ConfigError(f"--samples must be at least 1, found {samples}.")
    with console.status("reading the dataset"):
        findings = check_dataset(dataset, decode=False)
    if unusable(findings):
        _print_findings(findings)
        raise typer.Exit(EXIT_UNUSABLE)
    try:
        with console.status("reading the dataset"):
            summary = summarise(dataset, num_samples=samples if output is not None else 0, findings=findings)
    except DatasetError as error:  # one of the first pictures cannot be shown
        _print_findings([Finding("error", str(error)), *findings])
        raise typer.Exit(EXIT_UNUSABLE) from None
    _print_summary(console, summary)
    if output is not None:
        from rdvla.report.dataset import write_dataset_page

        write_dataset_page(summary, output)
        console.print(f"{output} ({output.stat().st_size / 1e6:.1f} MB)", highlight=False)


@dataset_app.command("check")
def check_command(
    dataset: Annotated[str, typer.Argument(help="LeRobotDataset v3.0: a folder, or owner/name[@revision] on the hub.")],
    quick: Annotated[bool, typer.Option("--quick", help="Decode no pictures.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """List everything that is wrong or doubtful in a dataset; the exit code is 1 if it cannot be used as it is."""
    from json import dumps

    from rdvla.data.checks import check_dataset, unusable

    with _progress(Console(stderr=True), "episodes") as progress:
        findings = check_dataset(dataset, decode=not quick, progress=progress)
    if json:
        print(dumps([finding.document() for finding in findings], indent=1))
    else:
        _print_findings(findings)
    if unusable(findings):
        raise typer.Exit(EXIT_UNUSABLE)


def _print_findings(findings: "Sequence[Finding]") -> None:
    from rdvla.data.checks import verdict

    for finding in findings:
        print(f"{finding.severity}: {finding}")
    print(verdict(findings))


def _find(source: str) -> tuple[Path, str]:
    """Return the folder or file `source`, which may be on the hub, and what to call it."""
    path = Path(source).expanduser()
    if source.strip() and path.exists():
        return path, path.resolve().name
    return resolve(source, DATASET), source.partition("@")[0]


def _open_source(
    root: Path, name: str, split: str | None, fps: float | None, camera_size: int | None
) -> "EpisodeSource":
    """Recognise what `root` holds; with a camera size, LIBERO's demonstrations are repeated in the simulator."""

    def refuse(source: str, **options: object) -> None:
        for option, value in options.items():
            if value is not None:
                raise ConfigError(f"--{option} {value}: {source} says that by itself; leave the option out.")

    if root.is_file() or any(root.glob("*_demo.hdf5")):
        from rdvla.data.libero_hdf5 import LiberoDemonstrations

        refuse("a file of LIBERO's demonstrations", split=split, fps=fps)
        demonstrations = LiberoDemonstrations.open(root)
        return demonstrations if camera_size is None else _regeneration(demonstrations, camera_size)
    if camera_size is not None:
        raise ConfigError("--regenerate repeats LIBERO's HDF5 demonstrations; the source has no *_demo.hdf5 files.")
    from rdvla.data.calvin_npz import SENTENCES, CalvinRecordings, sentence_file
    from rdvla.data.lerobot_meta import INFO_PATH, VERSION, DatasetInfo
    from rdvla.data.lerobot_v21 import LeRobotV21, is_v21
    from rdvla.data.rlds import RldsDataset, version_folder

    if is_v21(root):
        refuse("a LeRobotDataset v2.1", split=split, fps=fps)
        return replace(LeRobotV21.open(root), name=name)
    if (root / INFO_PATH).is_file():
        DatasetInfo.load(root)  # of an older version still, or damaged
        raise DatasetError(f"'{root}' is a LeRobotDataset {VERSION} already; use it as it is.")
    split = "train" if split is None else split
    sentences = sentence_file(root, split)
    if sentences is not None:
        refuse("a CALVIN recording", fps=fps)
        return CalvinRecordings.open(sentences)
    if version_folder(root) is None:
        raise DatasetError(
            f"'{root}' holds none of what can be converted: a LeRobotDataset v2.1 ({INFO_PATH}), RLDS "
            f"(dataset_info.json beside features.json), CALVIN ({SENTENCES}) or LIBERO's demonstrations (*_demo.hdf5)."
        )
    return RldsDataset.open(root, split=split, fps=fps)


def _regeneration(demonstrations: "LiberoDemonstrations", camera_size: int) -> "EpisodeSource":
    from rdvla.collect.regenerate import Regeneration
    from rdvla.envs.libero.env import LiberoEnv

    return Regeneration(demonstrations, partial(LiberoEnv, camera_size=camera_size), camera_size=camera_size)


@contextmanager
def _progress(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_summary(console: Console, summary: "DatasetSummary") -> None:
    info, lengths = summary.info, summary.lengths
    console.print(
        f"{summary.root}: {len(lengths)} episodes, {lengths.sum()} frames at {info.fps:g} per second, "
        f"robot {info.robot_type or 'unknown'}; lengths {lengths.min()} to {lengths.max()}, mean {lengths.mean():.1f}",
        highlight=False,
        soft_wrap=True,
    )
    for key in info.cameras:
        feature = info.features[key]
        console.print(f"{key}: {feature.dtype}, {feature.image_size[0]}x{feature.image_size[1]}", highlight=False)
    tasks = Table("task", "episodes", "frames")
    for task in summary.tasks:
        tasks.add_row(task.instruction, str(task.episodes), str(task.frames))
    console.print(tasks)
    for vector in summary.vectors:
        table = Table(vector.key, *_COLUMNS)
        for index, name in enumerate(vector.names):
            table.add_row(name, *(f"{getattr(vector.stats, column)[index]:.3g}" for column in _COLUMNS))
        console.print(table)
    for remark in summary.remarks:
        console.print(f"note: {remark}", highlight=False, soft_wrap=True)
