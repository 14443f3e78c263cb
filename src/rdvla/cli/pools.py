"""The options that say where workers run."""

from dataclasses import dataclass
from typing import Annotated, Literal

from rdvla.errors import ConfigError
from rdvla.jobs.pool import Pool
from rdvla.jobs.process import ProcessPool


@dataclass(frozen=True)
class PoolOptions:
    """Where workers run."""

    pool: Annotated[
        Literal["process", "ray"], "Where workers run: processes of this machine, or actors of a Ray cluster."
    ] = "process"
    address: Annotated[
        str | None, "Of --pool ray: auto or HOST:PORT [default: RAY_ADDRESS, else this machine alone]."
    ] = None
    gpus_per_worker: Annotated[float | None, "Of --pool ray: a worker's share of a GPU, e.g. 0.25 [default: 0]."] = None

    def make(self) -> Pool:
        """Return the pool.

        Raises:
            ConfigError: an option of Ray without it, or no cluster at `address`.
            MissingExtraError: Ray is not installed.
        """
        if self.pool == "process":
            for option, value in (("--address", self.address), ("--gpus-per-worker", self.gpus_per_worker)):
                if value is not None:
                    raise ConfigError(f"{option} belongs to a Ray cluster; add --pool ray, or drop it.")
            return ProcessPool()
        from rdvla.jobs.ray import RayPool

        return RayPool(self.address, gpus_per_worker=self.gpus_per_worker or 0.0)
