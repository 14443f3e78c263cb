"""`rdvla serve`: answer robots and simulators over a websocket."""

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rdvla.config import load_yaml
from rdvla.errors import ConfigError
from rdvla.policies.sources import COMPILE_HELP, PRECISION_HELP, Precision
from rdvla.stops import DEFAULT_MAX_DEPTH, StopRule

THREADS_HELP = "CPU threads of the policy [default: OMP_NUM_THREADS, else all cores but one]."


def serve_command(
    checkpoint: Annotated[str, typer.Option(help="Checkpoint folder or hub id of the policy.")],
    host: Annotated[str | None, typer.Option(help="Address to bind [default: 127.0.0.1]; others need a key.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port, 0 for a free one [default: 8000].")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with any field of ServeConfig.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File with the API key, instead of RDVLA_API_KEY.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate chain; speaks wss only.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key of --tls-cert.")] = None,
    web: Annotated[bool, typer.Option("--web", help="Serve the live page too, on loopback.")] = False,
    depth: Annotated[int | None, typer.Option(help="Iterations of requests that do not say.")] = None,
    stop: Annotated[str | None, typer.Option(help="Adaptive rule of requests that do not say.")] = None,
    delta: Annotated[float | None, typer.Option(help="Threshold of --stop.")] = None,
    max_depth: Annotated[int | None, typer.Option(help="Of --stop: never go on longer [default: 32].")] = None,
    instruction: Annotated[str | None, typer.Option(help="Sentence for requests without one.")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Requests decided together, at most [default: 8].")] = None,
    statistics: Annotated[str | None, typer.Option(help="Which of the checkpoint's statistics, e.g. a suite.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    base: Annotated[str | None, typer.Option(help="Of an un-merged lora_adapter: the VLM it was trained on.")] = None,
    device: Annotated[str, typer.Option(help="Where the checkpoint computes.")] = "cpu",
    precision: Annotated[Precision | None, typer.Option(help=PRECISION_HELP)] = None,
    compile: Annotated[bool, typer.Option("--compile", help=COMPILE_HELP)] = False,
    threads: Annotated[int | None, typer.Option(help=THREADS_HELP)] = None,
) -> None:
    """Serve a policy with openpi's websocket protocol; GET /healthz and /metrics on the same port."""
    from rdvla.server.background import serve_until_signal
    from rdvla.server.config import ServeConfig, read_api_key
    from rdvla.server.server import PolicyServer

    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "web": web or None,
        "instruction": instruction,
        "max_batch": max_batch,
    }
    values = load_yaml(config) if config is not None else {}
    values |= {key: value for key, value in given.items() if value is not None}
    settings = ServeConfig.build(values, source=f"'{config}' and the command line" if config else "the command line")
    api_key = read_api_key(settings, api_key_file)
    rule = default_rule(depth, stop, delta, max_depth)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    from rdvla.model.recorded import padded
    from rdvla.policies.network import load_policy

    limit_threads(threads)
    policy = load_policy(
        checkpoint,
        revision=revision,
        base=base,
        statistics=statistics,
        device=device,
        precision=precision,
        compile=compile,
    )
    if compile:
        for size in sorted({padded(count) for count in range(2, settings.max_batch + 1)}):
            policy.warm_up(size)
    server = PolicyServer(policy, settings, api_key=api_key, default_stop=rule)

    def announce() -> None:
        page = f"\nlive page: {server.url.replace('ws', 'http', 1)}" if settings.web else ""
        print(f"ready: {server.url}{page}", flush=True)

    asyncio.run(serve_until_signal(server, announce))


def limit_threads(threads: int | None) -> None:
    """Let torch compute with so many `threads`; by default one core is left to the network and everything else.

    A policy that takes all cores waits at every operation for whichever of its threads has to share one.

    Raises:
        ConfigError: fewer than one.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads must be at least 1, found {threads}.")
    import torch

    if threads is not None or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads or max(1, torch.get_num_threads() - 1))


def default_rule(depth: int | None, stop: str | None, delta: float | None, max_depth: int | None) -> StopRule | None:
    """Return the stopping rule that `--depth` or `--stop` ask for, None without either.

    Raises:
        ConfigError: both, a wrong value, or an option of `--stop` without it.
    """
    if stop is None:
        if delta is not None or max_depth is not None:
            raise ConfigError("--delta and --max-depth belong to an adaptive rule; add --stop, e.g. --stop action_l2.")
        return None if depth is None else StopRule.fixed(depth)
    if depth is not None:
        raise ConfigError("--depth fixes the iterations and --stop adapts them; give one of the two.")
    return StopRule(
        stop,
        threshold=delta,
        max_depth=DEFAULT_MAX_DEPTH if max_depth is None else max_depth,
    )
