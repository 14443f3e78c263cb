"""`rdvla serve`: answer robots and simulators over a websocket."""

import asyncio
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from rdvla.cli.options import StopOptions, with_options
from rdvla.config import load_yaml
from rdvla.errors import ConfigError
from rdvla.policies.sources import LoadOptions, choose_policy

THREADS_HELP = "CPU threads of the policy [default: OMP_NUM_THREADS, else all cores but one]."


@with_options
def serve_command(
    checkpoint: Annotated[str, typer.Option(help="Folder, name of a shipped policy, or hub id.")],
    host: Annotated[str | None, typer.Option(help="Address to bind [default: 127.0.0.1]; others need a key.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port, 0 for a free one [default: 8000].")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with any field of ServeConfig.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File with the API key, instead of RDVLA_API_KEY.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate chain; speaks wss only.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key of --tls-cert.")] = None,
    web: Annotated[bool, typer.Option("--web", help="Serve the live page too, on loopback.")] = False,
    instruction: Annotated[str | None, typer.Option(help="Sentence for requests without one.")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Requests decided together, at most [default: 8].")] = None,
    threads: Annotated[int | None, typer.Option(help=THREADS_HELP)] = None,
    *,
    stopping: StopOptions,
    loading: LoadOptions,
) -> None:
    """Serve a policy with openpi's websocket protocol; GET /healthz and /metrics on the same port.

    Requests that do not say when to stop are answered as `--depth` or `--stop` say.
    """
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
    rule = stopping.rule()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    limit_threads(threads)
    _, digest, _ = choose_policy(checkpoint, None, loading)
    from rdvla.model.recorded import padded
    from rdvla.policies.network import load_policy

    policy = load_policy(checkpoint, **asdict(loading))
    if loading.compile:
        for size in sorted({padded(count) for count in range(1, settings.max_batch + 1)}):
            policy.warm_up(size, rule)
    server = PolicyServer(policy, settings, api_key=api_key, default_stop=rule, checkpoint=loading.label(digest))

    def announce() -> None:
        page = f"\nlive page: {server.url.replace('ws', 'http', 1)}" if settings.web else ""
        stop = rule or policy.metadata.extra.get("default_stop", "own rule")
        print(f"ready: {server.url}{page}\nstops at: {stop}, unless a request says", flush=True)

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
