"""Recordings of the published CALVIN simulator, replayed: states, pictures, solved tasks; and its chains.

Every recording is replayed in a process of its own, as it was made.
"""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rdvla.checkpoints.tensors import read_json
from rdvla.doctor.calvin_replay import Replay, ask_oracle, replay_recording
from rdvla.doctor.checks import Check, compare, equal, unread, within
from rdvla.doctor.golden_image import load_arrays
from rdvla.envs.calvin import chains
from rdvla.envs.calvin.assets import find_data, load_scene, manifest, revision
from rdvla.envs.calvin.bullet import VARIABLE, Renderer, choose_renderer
from rdvla.errors import CheckpointError, SimulatorError

REFERENCE_PYBULLET = "3.2.7"
EGL_LIMIT = 1.0
"""Mean difference of a picture in grey levels; another driver draws edges otherwise."""

_STATES = ("init_robot_obs", "init_scene_obs", "actions", "robot_obs", "scene_obs")

Result = TypeVar("Result")


def find_calvin_cases(directory: Path) -> Iterator[tuple[str, Callable[[], list[Check]]]]:
    """Yield name and check of every CALVIN case in a directory of reference values."""
    rollouts = directory / "rollouts"
    arrays = {path.name.removesuffix(".npz").removesuffix(".egl") for path in rollouts.glob("*.npz")}
    for name in sorted(arrays | {path.stem for path in rollouts.glob("*.json")}):
        yield f"calvin/{name}", partial(check_rollout if name in arrays else _without_arrays, rollouts, name)
    for name, check in (("oracle_states", check_oracle_states), ("chains", check_chains)):
        path = directory / f"{name}.json"
        if path.is_file():
            yield f"calvin/{name}", partial(check, path)


def check_rollout(directory: Path, name: str) -> list[Check]:
    """Replay `NAME.npz`, and draw the pictures of `NAME.egl.npz` if there are any."""
    case = f"calvin/{name}"
    arrays, facts = load_arrays(directory / f"{name}.npz"), read_json(directory / f"{name}.json")
    renderer: Renderer = "egl" if facts.get("renderer") == "egl" else "tiny"
    pictures = {key: image for key, image in arrays.items() if key.startswith("rgb_")}
    drawn = renderer == "tiny" or choose_renderer() == "egl"
    if not drawn:  # the physics is the same
        renderer, pictures = "tiny", {}
    found = _alone(replay_recording, arrays, facts, renderer, sorted(pictures))
    checks = [
        *([equal(case, "control steps", len(arrays["actions"]), facts["steps"])] if "steps" in facts else []),
        _exactly(case, "robot state at every step", found.robot_obs, arrays["robot_obs"]),
        _exactly(case, "scene state at every step", found.scene_obs, arrays["scene_obs"]),
        _same_sets(case, "tasks solved at every step", found.solved, _unroll(facts, len(found.solved))),
        *(_compare_pictures(case, renderer, found, pictures) if drawn else [_undrawn(case)]),
    ]
    others = directory / f"{name}.egl.npz"
    if others.is_file():
        pictures = load_arrays(others)
        if choose_renderer() == "egl":
            checks += _compare_pictures(
                case, "egl", _alone(replay_recording, arrays, facts, "egl", sorted(pictures)), pictures
            )
        else:
            checks.append(_undrawn(case))
    known = {key for key in arrays if key in _STATES or key.startswith("rgb_")}
    return _judge(checks) + unread(case, set(arrays) - known)


def _without_arrays(directory: Path, name: str) -> list[Check]:
    return [
        Check(f"calvin/{name}", "not replayed", "warn", note=f"there is no '{directory / name}.npz'; copy it, too.")
    ]


def _undrawn(case: str) -> Check:
    return Check(case, "pictures (egl)", "skip", note=f"{VARIABLE} is tiny, or EGL does not draw here.")


def check_oracle_states(path: Path) -> list[Check]:
    """Put the table from one state into another and ask which tasks that solves."""
    document = read_json(path)
    cases = document["cases"]
    found = _alone(ask_oracle, document)
    expected = [sorted(each["solved"]) for each in cases]
    quantity = f"tasks solved between {len(cases)} pairs of states"
    return _judge([_same_sets("calvin/oracle_states", quantity, found, expected, [each["name"] for each in cases])])


def check_chains(path: Path) -> list[Check]:
    """Compare the 1,000 chains by their checksum, and the recorded ones with their start states."""
    document, case = read_json(path), "calvin/chains"
    ours = [chains.evaluation_chain(index) for index in range(chains.NUM_CHAINS)]
    text = json.dumps([[dict(each.initial), each.tasks] for each in ours], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    scene = load_scene("D")
    recorded = document["first"]
    pairs = list(zip(ours, recorded, strict=False))
    different = sum(
        (dict(chain.initial), list(chain.tasks)) != (each["initial"], each["subtasks"]) for chain, each in pairs
    )
    starts = [chains.start_obs(chain, scene) for chain, _ in pairs]
    return [
        within(case, f"checksum of {len(ours)} chains", float(digest != document["sha256_of_all"]), 0.0),
        within(case, f"{len(pairs)} recorded chains: situation and tasks", float(different), 0.0),
        compare(case, "start states of the scene", starts, [each["scene_obs"] for each in recorded], 0.0),
        compare(
            case, "start states of the robot", [chains.ROBOT_OBS] * len(pairs), [e["robot_obs"] for e in recorded], 0.0
        ),
    ]


def _alone(work: Callable[..., Result], *arguments: Any) -> Result:
    """Return what `work` returns, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BrokenProcessPool as error:
            raise SimulatorError("the process of the simulator died; is its renderer broken?") from error


def _exactly(case: str, quantity: str, found: NDArray[Any], expected: NDArray[Any]) -> Check:
    check = compare(case, quantity, found, expected, 0.0)
    if check.status == "pass" or found.shape != expected.shape:
        return check
    first = int(np.argmax((found != expected).any(axis=1)))
    return replace(check, note=f"first different at step {first}")


def _same_sets(
    case: str, quantity: str, found: list[list[str]], expected: list[list[str]], names: list[str] | None = None
) -> Check:
    """Compare lists of tasks; the difference is how many of them are not the same."""
    wrong = [index for index, each in enumerate(expected) if found[index] != each]
    note = ""
    if wrong:
        where = names[wrong[0]] if names else f"step {wrong[0]}"
        note = f"{where}: {found[wrong[0]]} instead of {expected[wrong[0]]}"
    return within(case, quantity, float(len(wrong)), 0.0, note=note)


def _unroll(facts: Mapping[str, Any], moments: int) -> list[list[str]]:
    """Return the recorded tasks of every moment; the recording names those at which they change."""
    changes = {step: sorted(tasks) for step, tasks in facts["solved_since_last_start_info"]}
    if max(changes, default=0) >= moments:
        raise CheckpointError(f"tasks are recorded of step {max(changes)}, actions of {moments - 1}; copy both again.")
    every: list[list[str]] = []
    for moment in range(moments):
        every.append(changes.get(moment, every[-1] if every else []))
    return every


def _compare_pictures(
    case: str, renderer: Renderer, found: Replay, pictures: Mapping[str, NDArray[np.uint8]]
) -> list[Check]:
    """Compare the pictures: TinyRenderer's exactly, those of a driver by their mean difference."""
    if not pictures:
        return []
    distances = [np.abs(found.pictures[key].astype(np.int64) - image) for key, image in pictures.items()]
    largest, mean = max(int(each.max()) for each in distances), max(float(each.mean()) for each in distances)
    quantity = f"{len(pictures)} pictures ({renderer})"
    if renderer == "tiny":
        return [within(case, quantity, float(largest), 0.0)]
    note = f"mean of the worst picture; largest difference of a value {largest}; {found.drawn_by}"
    return [within(case, quantity, mean, EGL_LIMIT, note=note)]


def _judge(checks: list[Check]) -> list[Check]:
    """Say what may explain failures: other data files than the recordings', or another pybullet (they warn then)."""
    installed, files = version("pybullet"), revision(find_data())
    reasons = [f"pybullet {installed} instead of {REFERENCE_PYBULLET}"] if installed != REFERENCE_PYBULLET else []
    reasons += [f"data files {files}"] if files != manifest().revision else []
    if not reasons:
        return checks
    note = "; ".join(reasons)
    status: Any = "warn" if installed != REFERENCE_PYBULLET else "fail"
    return [
        replace(each, status=status, note=f"{note}; {each.note}") if each.status == "fail" else each for each in checks
    ]
