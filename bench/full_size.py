"""The full-size network with random weights on a CPU: `python bench/full_size.py [--threads 2] [--depth 12]`.

Builds `rdvla_0_5b`, counts its parameters, decides once in float32 and once in bfloat16, writes it in the released
layout, compares names, shapes and dtypes with the released ones (`--layout DIR` holds `vlm/real_layout.json` and
`head/real_layout.json`), and loads it again. Takes about 8 GB of memory and 3 GB of disk.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from rdvla.checkpoints import Checkpoint, load, save_official
from rdvla.data.images import PUBLISHED
from rdvla.data.stats import DatasetStatistics, NormStats
from rdvla.model.config import rdvla_0_5b
from rdvla.model.prompt import train_tokenizer
from rdvla.model.rdvla import RDVLA
from rdvla.policies.network import RDVLAPolicy
from rdvla.policy import StopRule
from rdvla.types import Observation

INSTRUCTION = "pick up the black bowl between the plate and the ramekin and place it on the plate"
EXPECTED = {
    "vision.featurizer.": 303_230_976,
    "vision.fused_featurizer.": 427_680_704,
    "projector.": 27_552_000,
    "language.": 494_032_768,
    "latent_tokens": 57_344,
    "head.": 72_280_333,
    "state_projector.": 811_776,
}


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Stopwatch:
    """Measures wall-clock and processor time from its creation."""

    def __init__(self) -> None:
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def report(self, what: str) -> None:
        """Print both times and the peak memory so far."""
        wall, processor = time.perf_counter() - self.wall, time.process_time() - self.processor
        print(f"{what:44} {wall:8.1f} s  ({processor:6.1f} s of CPU)  peak {peak_gib():5.1f} GiB", flush=True)


def observation() -> Observation:
    y, x = np.mgrid[0:256, 0:256]
    image = np.stack([(x + y) % 256, (2 * x) % 256, (3 * y) % 256], axis=2).astype(np.uint8)
    return Observation({"primary": image, "wrist": image[::-1].copy()}, np.linspace(-0.5, 0.5, 8), INSTRUCTION)


def statistics() -> DatasetStatistics:
    values = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    action = NormStats.compute(values[:, :7], [True] * 6 + [False])
    return DatasetStatistics(action, NormStats.compute(values), 100, 1)


def build() -> Checkpoint:
    torch.manual_seed(0)
    model = RDVLA(rdvla_0_5b()).eval()
    tokenizer = train_tokenizer([INSTRUCTION])
    return Checkpoint(model, {"libero_spatial": statistics()}, tokenizer, PUBLISHED, step=39999)


def count(model: RDVLA) -> None:
    for prefix, expected in EXPECTED.items():
        found = sum(value.numel() for name, value in model.named_parameters() if name.startswith(prefix))
        print(
            f"{prefix:26} {found:12,} parameters   {'as released' if found == expected else f'EXPECTED {expected:,}'}"
        )


def decide(checkpoint: Checkpoint, depth: int, label: str) -> np.ndarray:
    policy = RDVLAPolicy(checkpoint, name="random weights")
    watch = Stopwatch()
    chunk = policy.infer(observation(), stop=StopRule.fixed(depth), seed=7)
    watch.report(f"one infer, {label}, depth {depth}")
    print("  " + ", ".join(f"{stage} {value / 1e3:.2f} s" for stage, value in chunk.timings.items()))
    return chunk.actions


def compare_layout(directory: Path, layout: Path) -> None:
    vlm = json.loads((layout / "vlm" / "real_layout.json").read_text())["tensors"]
    vlm.pop("language_model.lm_head.weight", None)
    with safe_open(directory / "model.safetensors", "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        found = {name: (list(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    same = found == {name: (shape, "BF16") for name, shape in vlm.items()}
    print(f"VLM: {len(found)} tensors; names, shapes, dtypes {'as released' if same else 'DIFFER'}")
    parts = json.loads((layout / "head" / "real_layout.json").read_text())
    for key, pattern in (("action_head", "action_head--*.pt"), ("proprio_projector", "proprio_projector--*.pt")):
        (path,) = directory.glob(pattern)
        tensors = torch.load(path, weights_only=True)
        found = {name: (list(value.shape), str(value.dtype)) for name, value in tensors.items()}
        expected = {
            name.removeprefix("module."): (entry["shape"], f"torch.{entry['dtype']}")
            for name, entry in parts[key].items()
        }
        print(f"{key}: {len(found)} tensors; names, shapes, dtypes {'as released' if found == expected else 'DIFFER'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--layout", type=Path, help="directory with the released names and shapes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    watch = Stopwatch()
    checkpoint = build()
    watch.report("built with random weights, float32")
    count(checkpoint.model)
    decide(checkpoint, arguments.depth, "float32")
    checkpoint.model.bfloat16()
    actions = decide(checkpoint, arguments.depth, "bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "released"
        watch = Stopwatch()
        save_official(directory, checkpoint)
        watch.report("written in the released layout")
        if arguments.layout:
            compare_layout(directory, arguments.layout)
        del checkpoint
        watch = Stopwatch()
        loaded = load(directory)
        watch.report("loaded again, every tensor checked")
        again = decide(loaded, arguments.depth, "bfloat16, loaded")
        print(f"same actions after loading: {np.array_equal(actions, again)}")


if __name__ == "__main__":
    main()
