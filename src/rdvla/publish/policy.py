"""`rdvla push`: a policy, loaded strictly before anything leaves the machine, and its card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rdvla.checkpoints.lerobot import DESCRIPTION, is_lerobot
from rdvla.checkpoints.load import find, load
from rdvla.checkpoints.native import CONFIG, STATISTICS, TOKENIZER, WEIGHTS, is_native
from rdvla.data.lerobot_meta import INFO_PATH
from rdvla.errors import CheckpointError, ConfigError
from rdvla.eval.records import EPISODES_FILE
from rdvla.files import require_new_folder
from rdvla.hub import CHECKPOINT, Repository, local, require_token, upload
from rdvla.policies.sources import fingerprint
from rdvla.publish.card import Facts, model_card, own_words
from rdvla.publish.staging import CARD, read_card, staged
from rdvla.report.load import Run, load_runs
from rdvla.report.training import VALIDATION, is_training, load_training

TRAINED = "policy"


@dataclass(frozen=True)
class About:
    """What the files of a policy do not say.

    Attributes:
        licence: an identifier of the hub's, e.g. `apache-2.0`.
        datasets: hub ids that it was trained on.
        base: hub id of what it was trained from.
        evaluations: folders of `rdvla eval` with this policy; those of its training run are found.
    """

    licence: str
    datasets: Sequence[str] = ()
    base: str | None = None
    evaluations: Sequence[Path] = ()


def push_policy(source: str, to: Repository, about: About, *, dry_run: Path | None = None) -> str | None:
    """Upload a policy, or write the folder that would be uploaded.

    Args:
        source: a checkpoint of ours or LeRobot's layout, a finished run of `rdvla train`, or a shipped policy.
        to: where to.
        about: what the card says beside what is found.
        dry_run: a new folder to write instead of uploading.

    Returns:
        The commit, None after a dry run.

    Raises:
        CheckpointError: no such folder, no policy, an unfinished run, a damaged one, or the hub refuses.
        ConfigError: an evaluation is another policy's.
        RecordError: an evaluation is missing or damaged.
        StorageError: the folder exists, or the disk refuses.
    """
    if dry_run is None:
        require_token(to.kind)
    else:
        require_new_folder(dry_run)
    folder, run = _policy_in(source)
    layout = "lerobot" if is_lerobot(folder) else "native"
    readme = folder / CARD
    facts = Facts(
        repository=to.name,
        checkpoint=load(folder),
        layout=layout,
        licence=about.licence,
        datasets=about.datasets,
        base=about.base,
        evaluations=_evaluations(folder, run, about.evaluations),
        validation=_validation(run) if run is not None else {},
        notes=own_words(read_card(readme, CheckpointError)) if readme.is_file() else "",
    )
    with staged(_files(folder, layout), model_card(facts), dry_run) as draft:
        return None if dry_run is not None else upload(draft, to, message="Upload a policy with rdvla push")


def _policy_in(source: str) -> tuple[Path, Path | None]:
    """Return the folder of the policy, and that of its training run if `source` is one."""
    folder = local(source, CHECKPOINT)
    if folder is None:
        raise CheckpointError(f"no folder '{source}'; name the one that 'rdvla train' or 'rdvla convert' wrote.")
    if (folder / EPISODES_FILE).is_file():
        raise CheckpointError(f"'{folder}' is an evaluation; name its policy, and this one with --evaluation.")
    if (folder / INFO_PATH).is_file():
        raise CheckpointError(f"'{folder}' is a dataset: rdvla dataset push {folder} OWNER/NAME")
    run = folder if is_training(folder) else None
    if run is not None:
        folder = run / TRAINED
        if not folder.is_dir():
            saved = sorted(run.glob(f"checkpoints/*/{TRAINED}"))
            hint = f", or name '{saved[-1]}' to publish it as it is" if saved else ""
            raise CheckpointError(f"the run '{run}' is not finished: repeat its 'rdvla train' command{hint}.")
    find(folder)
    if not (is_native(folder) or is_lerobot(folder)):
        raise CheckpointError(
            f"'{folder}' has the released layout, which holds pickles (.pt); only safetensors are uploaded: "
            f"rdvla convert {folder} NEW --to native"
        )
    return folder, run


def _files(folder: Path, layout: str) -> dict[str, Path]:
    """Return what is uploaded: name there -> file."""
    if layout == "native":
        return {name: folder / name for name in (CONFIG, WEIGHTS, STATISTICS, TOKENIZER)}
    found = [path for pattern in ("*.json", "*.safetensors", f"{DESCRIPTION}/*.json") for path in folder.glob(pattern)]
    return {path.relative_to(folder).as_posix(): path for path in sorted(found)}


def _evaluations(folder: Path, run: Path | None, given: Sequence[Path]) -> list[Run]:
    """Return the evaluations of exactly this policy: those given, which have to be, and those its training played."""
    digest = fingerprint(folder)
    runs = load_runs(given) if given else []
    for each in runs:
        found = each.config.get("policy_digest")
        if found != digest:
            raise ConfigError(
                f"'{each.folder}' evaluated another policy ({found or 'unknown'}) than '{folder}' ({digest}); leave it "
                "out, or evaluate this one."
            )
    played = sorted(path.parent for path in run.glob(f"evaluations/*/{EPISODES_FILE}")) if run is not None else []
    inside = [path for path in played if path.resolve() not in {each.folder.resolve() for each in runs}]
    return runs + [each for each in load_runs(inside) if each.config.get("policy_digest") == digest] if inside else runs


def _validation(run: Path) -> Mapping[int, float]:
    """Return the last validation of a training run: iterations -> mean absolute error."""
    by_depth = load_training(run).starting_with(VALIDATION)
    return {int(depth): points[-1][1] for depth, points in by_depth.items()}
