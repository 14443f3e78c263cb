"""The options that say where workers run."""

from typing import Literal

from rdvla.errors import ConfigError
from rdvla.jobs.pool import Pool
from rdvla.jobs.process import ProcessPool

PoolName = Literal["process", "ray"]
POOL_HELP = "Where workers run: processes of this machine, or actors of a Ray cluster."
ADDRESS_HELP = "Of --pool ray: auto, HOST:PORT or ray://HOST:PORT [default: RAY_ADDRESS, else this machine alone]."
GPUS_HELP = "Of --pool ray: a worker's share of a GPU, e.g. 0.25 [default: 0]."


def make_pool(name: PoolName, address: str | None, gpus_per_worker: float | None) -> Pool:
    """Return the pool that the options name.

    Raises:
        ConfigError: an option of Ray without it, or no cluster at `address`.
        MissingExtraError: Ray is not installed.
    """
    if name == "process":
        for option, value in (("--address", address), ("--gpus-per-worker", gpus_per_worker)):
            if value is not None:
                raise ConfigError(f"{option} belongs to a Ray cluster; add --pool ray, or drop it.")
        return ProcessPool()
    from rdvla.jobs.ray import RayPool

    return RayPool(address, gpus_per_worker=gpus_per_worker or 0.0)
