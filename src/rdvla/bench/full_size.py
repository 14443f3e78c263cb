"""The full-size network with random weights on a CPU: sizes, time, memory, and the released layout and back.

Takes about 8 GB of memory and 3 GB of disk.
"""

import json
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from rdvla.bench.tables import Cell, Table
from rdvla.checkpoints import Checkpoint, load, save_official
from rdvla.checkpoints.names import stored_state
from rdvla.data.images import PUBLISHED
from rdvla.data.stats import DatasetStatistics, NormStats
from rdvla.embodiment import LIBERO
from rdvla.errors import CheckpointError
from rdvla.model.config import RDVLAConfig
from rdvla.model.prompt import train_tokenizer
from rdvla.model.rdvla import RDVLA
from rdvla.policies.network import RDVLAPolicy
from rdvla.policy import Ask
from rdvla.stops import StopRule
from rdvla.types import ActionConvention, Observation

INSTRUCTION = "pick up the black bowl between the plate and the ramekin and place it on the plate"
RELEASED_PARAMETERS = {
    "vision.featurizer.": 303_230_976,
    "vision.fused_featurizer.": 427_680_704,
    "projector.": 27_552_000,
    "language.": 494_032_768,
    "latent_tokens": 57_344,
    "head.": 72_280_333,
    "state_projector.": 811_776,
}


def measure_full_size(
    config: RDVLAConfig, depth: int, layout: Path | None, tell: Callable[[str], None] = lambda _: None
) -> tuple[Table, ...]:
    """Build the network, decide in float32 and bfloat16, write it in the released layout and load it again.

    Args:
        config: the network; released sizes are `rdvla_0_5b()`.
        depth: iterations per decision.
        layout: a folder with `vlm/real_layout.json` and `head/real_layout.json`, the released names, shapes and dtypes
            to compare with; None compares nothing.
        tell: is told what happens.

    Returns:
        Parameters by part beside the released ones; time and peak memory of every stage; what was compared.
    """
    stages = _Stages(tell)
    checkpoint = stages.run("build, random weights, float32", lambda: build(config))
    parameters = Table("Parameters", ("part", "found", "released"), tuple(count(checkpoint.model)))
    decide(checkpoint, depth, "float32", stages)
    checkpoint.model.bfloat16()
    actions = decide(checkpoint, depth, "bfloat16", stages)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "released"
        stages.run("write the released layout", partial(save_official, directory, checkpoint))
        compared = [] if layout is None else compare_layout(directory, layout)
        del checkpoint
        loaded = stages.run("load it again", lambda: load(directory))
        again = decide(loaded, depth, "bfloat16, loaded", stages)
    compared.append(("actions after loading", "equal" if np.array_equal(actions, again) else "DIFFER"))
    return (
        parameters,
        Table("Stages", ("stage", "s", "s of processor", "peak GiB"), tuple(stages.rows)),
        Table("Compared", ("what", "result"), tuple(compared)),
    )


class _Stages:
    """Times one stage after the other."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.rows: list[tuple[Cell, ...]] = []
        self._tell = tell

    def run(self, name: str, stage: Callable[[], Any]) -> Any:
        """Return what `stage` returns; note its wall-clock and processor time and the peak memory so far."""
        self._tell(name)
        wall, processor = time.perf_counter(), time.process_time()
        result = stage()
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self.rows.append((name, time.perf_counter() - wall, time.process_time() - processor, peak_gib))
        return result


def build(config: RDVLAConfig) -> Checkpoint:
    """Return a checkpoint with random weights and statistics."""
    torch.manual_seed(0)
    model = RDVLA(config).eval()
    values = np.random.default_rng(0).normal(size=(100, config.head.state_dim)).astype(np.float32)
    size = config.head.action_dim
    action = NormStats.compute(values[:, :size], [True] * (size - 1) + [False])
    statistics = DatasetStatistics(action, NormStats.compute(values), 100, 1)
    tokenizer = train_tokenizer([INSTRUCTION])
    path = replace(PUBLISHED, size=config.backbone.image_size)
    return Checkpoint(
        model, {"libero_spatial": statistics}, tokenizer, ActionConvention(LIBERO.gripper), path, step=39999
    )


def count(model: RDVLA) -> list[tuple[Cell, ...]]:
    """Return the parameters of every part, beside the released ones."""
    return [
        (prefix, sum(value.numel() for name, value in stored_state(model).items() if name.startswith(prefix)), released)
        for prefix, released in RELEASED_PARAMETERS.items()
    ]


def decide(checkpoint: Checkpoint, depth: int, label: str, stages: _Stages) -> NDArray[np.float32]:
    """Decide once; return the actions `[chunk_size, action_dim]`."""
    policy = RDVLAPolicy(checkpoint, name="random weights")
    y, x = np.mgrid[0:256, 0:256]
    image = np.stack([(x + y) % 256, (2 * x) % 256, (3 * y) % 256], axis=2).astype(np.uint8)
    state = np.linspace(-0.5, 0.5, policy.metadata.state_dim, dtype=np.float32)
    seen = Observation({"primary": image, "wrist": image[::-1].copy()}, state, INSTRUCTION)
    stop = StopRule.fixed(depth)
    chunk = stages.run(f"decide, {label}, depth {depth}", lambda: policy.infer(seen, Ask(stop, seed=7)))
    actions: NDArray[np.float32] = chunk.actions
    return actions


def compare_layout(directory: Path, layout: Path) -> list[tuple[Cell, ...]]:
    """Compare names, shapes and dtypes of a written checkpoint with the released ones.

    Raises:
        CheckpointError: `layout` does not hold the released names.
    """
    try:
        vlm = json.loads((layout / "vlm" / "real_layout.json").read_text())["tensors"]
        parts = json.loads((layout / "head" / "real_layout.json").read_text())
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"'{layout}' does not hold the released layout: {error}") from None
    vlm.pop("language_model.lm_head.weight", None)
    with safe_open(directory / "model.safetensors", "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        found = {name: (list(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    same = found == {name: (shape, "BF16") for name, shape in vlm.items()}
    rows: list[tuple[Cell, ...]] = [(f"VLM, {len(found)} tensors", _verdict(same))]
    for key, pattern in (("action_head", "action_head--*.pt"), ("proprio_projector", "proprio_projector--*.pt")):
        (path,) = directory.glob(pattern)
        tensors = torch.load(path, weights_only=True)
        written = {name: (list(value.shape), str(value.dtype)) for name, value in tensors.items()}
        released = {
            name.removeprefix("module."): (entry["shape"], f"torch.{entry['dtype']}")
            for name, entry in parts[key].items()
        }
        rows.append((f"{key}, {len(written)} tensors", _verdict(written == released)))
    return rows


def _verdict(same: bool) -> str:
    return "names, shapes, dtypes as released" if same else "DIFFER from the released ones"
