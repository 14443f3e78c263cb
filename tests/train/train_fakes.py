"""A small recorded dataset, run settings, and the released kind of network at toy size."""

import multiprocessing
import os
import resource
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from patience import PATIENCE_S, kept_port
from rdvla.data.lerobot_meta import Feature
from rdvla.data.lerobot_writer import LeRobotWriter, RecordedEpisode
from rdvla.errors import RDVLAError
from rdvla.train.config import TrainConfig
from rdvla.train.distributed import Ranks
from rdvla.train.loop import train

IMAGE = {"primary": "observation.images.image", "wrist": "observation.images.image2"}

RELEASED_KIND = {
    "preset": "rdvla_0_5b",
    "network": {
        "vision": {
            "image_size": 28,
            "dino": {"depth": 3, "width": 8, "num_heads": 2, "mlp_width": 32},
            "siglip": {"depth": 2, "width": 12, "num_heads": 2, "mlp_width": 44},
        },
        "projector_width": 80,
        "language": {
            "vocab_size": 512,
            "hidden_size": 16,
            "num_layers": 3,
            "num_heads": 2,
            "num_kv_heads": 1,
            "mlp_width": 24,
        },
        "num_latent_tokens": 5,
    },
    "head": {
        "hidden_dim": 16,
        "num_heads": 2,
        "prelude_layers": [1],
        "recurrent_layers": [2, 2],
        "coda_layers": [2],
        "chunk_size": 4,
        "mean_recurrence": 4,
        "backprop_depth": 2,
    },
}
SMALL_IMAGES = {"size": 28, "resize": "lanczos3", "jpeg": True, "crop_area": 0.9}


def record(root, *, action_dim=7, episodes=6, length=12, seed=0):
    rng = np.random.default_rng(seed)
    names = ("height", "width", "channels")
    features = {
        "observation.state": Feature("float32", (8,)),
        "action": Feature("float32", (action_dim,)),
    } | {key: Feature("image", (64, 64, 3), names) for key in IMAGE.values()}
    writer = LeRobotWriter(root, fps=20, features=features)
    for episode in range(episodes):
        writer.add_episode(
            RecordedEpisode(
                task=f"pick up the {('red', 'green')[episode % 2]} block",
                columns={
                    "observation.state": rng.normal(size=(length, 8)).astype(np.float32),
                    "action": np.tanh(rng.normal(size=(length, action_dim))).astype(np.float32),
                },
                images={
                    key: [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(length)]
                    for key in IMAGE.values()
                },
            )
        )
    writer.finalize()
    return root


def settings(dataset, output, **changes):
    values = {
        "output": str(output),
        "data": {"root": str(dataset), "validation_fraction": 0.2},
        "model": {"head": {"mean_recurrence": 4, "backprop_depth": 2}},
        "device": "cpu",
        "batch_size": 4,
        "max_steps": 4,
        "save_freq": 1,
        "validate_freq": 4,
        "log_freq": 1,
        "validation_samples": 4,
        "validation_depths": [1, 2],
        "num_threads": 1,
    }
    return values | changes


def small(dataset, output, **changes):
    """Return settings that train in a fraction of a second per step: the released kind at toy size, no validation."""
    data = {"root": str(dataset), "validation_fraction": 0.0, "images": SMALL_IMAGES}
    base = {"data": data, "model": RELEASED_KIND, "precision": "float32", "batch_size": 2, "trackers": ()}
    return settings(dataset, output, **(base | changes))


def run(dataset, output, watcher=None, **changes):
    return train(TrainConfig.build(settings(dataset, output, **changes)), watcher)


def run_small(dataset, output, watcher=None, **changes):
    return train(TrainConfig.build(small(dataset, output, **changes)), watcher)


def released_network(seed=0):
    """Return the released kind of network at toy size, with gates open so that everything matters."""
    from rdvla.model.rdvla import RDVLA
    from rdvla.train.config import ModelConfig
    from rdvla.train.presets import changed, preset_network

    torch.manual_seed(seed)
    config = ModelConfig.build(RELEASED_KIND)
    model = RDVLA(changed(preset_network(config.preset, vocab_size=512), config.changes))
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.constant_(parameter, 0.5)
    return model


def random_batch(model, *, size=2, seed=0):
    """Return a TrainBatch of random pixels and words for `model`, and a scratchpad."""
    from rdvla.model.rdvla import Inputs
    from rdvla.train.batches import TrainBatch

    config, generator = model.config, torch.Generator().manual_seed(seed)
    side, head = config.backbone.image_size, config.head
    images = torch.randint(0, 256, (size, 2, side, side, 3), generator=generator, dtype=torch.uint8)
    ids = torch.randint(0, 300, (size, 7), generator=generator)
    state = torch.randn(size, head.state_dim, generator=generator)
    batch = TrainBatch(
        Inputs(images, ids, torch.tensor([7, 5][:size]), state),
        torch.randn(size, head.chunk_size, head.action_dim, generator=generator),
        torch.zeros(size, head.chunk_size, dtype=torch.bool),
        np.arange(size),
        np.arange(size),
    )
    return batch, model.head.init_latents(size, generator)


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["rdvla.train.loop"])  # so that a process starts without importing torch again


class Crew:
    """A run in processes of its own, as a launcher would start them; each leaves its error in a file."""

    def __init__(self, folder, values, *, count=1, largest_file=None):
        folder.mkdir(parents=True, exist_ok=True)
        self.errors = [folder / f"error{rank}.txt" for rank in range(count)]
        self.meeting = ExitStack()
        environments = self.meeting.enter_context(_environments(count))
        self.members = [
            PROCESSES.Process(
                target=_member,
                args=(environment, values, error, None if rank else largest_file),
            )
            for rank, (environment, error) in enumerate(zip(environments, self.errors, strict=True))
        ]
        for error in self.errors:
            error.unlink(missing_ok=True)
        for member in self.members:
            member.start()

    @property
    def running(self):
        return any(member.is_alive() for member in self.members)

    def wait(self):
        """Wait until all have ended by themselves; return their exit codes."""
        with self.meeting:
            return _ended(self.members)


def _ended(members):
    """Wait until all have ended by themselves; return their exit codes."""
    try:
        for member in members:
            member.join(PATIENCE_S)
        return [member.exitcode for member in members]  # None of one that hangs
    finally:
        for member in members:
            member.kill()


@contextmanager
def _environments(count):
    """Yield what a launcher says to each of `count` processes, which can meet meanwhile."""
    with kept_port() as port:
        common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        common["XDG_CACHE_HOME"] = os.environ["XDG_CACHE_HOME"]
        yield [{"RANK": str(rank)} | common for rank in range(count)]


def in_processes(count, check):
    """Run `check()` in processes that have met each other; an error in one of them is one here."""
    with _environments(count) as environments:
        members = [PROCESSES.Process(target=_meet, args=(environment, check)) for environment in environments]
        for member in members:
            member.start()
        assert _ended(members) == [0] * count


def _meet(environment, check):
    os.environ |= environment
    with Ranks().on(torch.device("cpu")):
        check()


def _member(environment, values, error_file, largest_file):
    os.environ |= environment
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        train(TrainConfig.build(values))
    except RDVLAError as error:
        error_file.write_text(f"{type(error).__name__}: {error}")
        raise SystemExit(2) from None
