"""Runs a directory of recorded reference values: `head/`, `vlm/`, `image/` and `data/`, whichever are there.

- `head/NAME.{weights,io,grads}.safetensors` + `NAME.json`: any number of cases of any sizes, and the facts about the
  full size (`real_layout.json`, `real_init_statistics.json`, `sampler.json`);
- `vlm/golden.{safetensors,json}` with a tiny checkpoint directory beside them, `tokens.json`, `real_layout.json`;
- `image/*.npz`; `data/golden_data.npz` with its statistics and factors;
- of CALVIN: `rollouts/NAME.npz` + `NAME.json` (and `NAME.egl.npz`), `oracle_states.json`, `chains.json`.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rdvla.checkpoints.tensors import read_json
from rdvla.doctor.checks import Check, guarded, summary
from rdvla.doctor.golden_calvin import find_calvin_cases
from rdvla.doctor.golden_head import check_head, find_head_cases
from rdvla.doctor.golden_head_facts import check_initialisation, check_layout, check_sampler
from rdvla.doctor.golden_image import check_data, check_images
from rdvla.doctor.golden_vlm import check_vlm
from rdvla.doctor.layout import check_vlm_layout
from rdvla.errors import ConfigError

Case = tuple[str, Callable[[], list[Check]]]


def run_golden(directory: Path) -> Iterator[list[Check]]:
    """Yield the checks of one case after the other.

    Raises:
        ConfigError: no such directory, or nothing in it that can be run.
    """
    if not directory.is_dir():
        raise ConfigError(f"no directory of reference values at '{directory}'.")
    cases = [*_head(directory / "head"), *_vlm(directory / "vlm"), *_images(directory / "image")]
    if (directory / "data" / "golden_data.npz").is_file():
        cases.append(("data", partial(check_data, directory / "data")))
    cases += find_calvin_cases(directory)
    if not cases:
        raise ConfigError(
            f"'{directory}' has none of head/, vlm/, image/, data/ and (of CALVIN) rollouts/, oracle_states.json and "
            "chains.json with reference values in it."
        )
    for name, run in cases:
        yield guarded(name, run)


def _head(directory: Path) -> list[Case]:
    cases: list[Case] = [(f"head/{name}", partial(check_head, directory, name)) for name in find_head_cases(directory)]
    facts: dict[str, Callable[[Mapping[str, Any], str], list[Check]]] = {
        "real_layout": check_layout,
        "real_init_statistics": check_initialisation,
        "sampler": check_sampler,
    }
    cases += [
        (f"head/{name}", partial(_with_document, check, directory / f"{name}.json", f"head/{name}"))
        for name, check in facts.items()
        if (directory / f"{name}.json").is_file()
    ]
    return cases


def _vlm(directory: Path) -> list[Case]:
    cases: list[Case] = []
    if (directory / "golden.safetensors").is_file():
        cases.append(("vlm", partial(check_vlm, directory)))
    layout = directory / "real_layout.json"
    if layout.is_file():
        cases.append(("vlm/real_layout", partial(_with_document, check_vlm_layout, layout, "vlm/real_layout")))
    return cases


def _images(directory: Path) -> list[Case]:
    return [("image", partial(check_images, path)) for path in sorted(directory.glob("*.npz"))]


def _with_document(check: Callable[[Mapping[str, Any], str], list[Check]], path: Path, label: str) -> list[Check]:
    return check(read_json(path), label)


def to_json(checks: list[Check]) -> str:
    """Return the checks for machines; a difference that is not a number becomes null."""
    entries = [vars(check) | {"difference": _finite(check.difference)} for check in checks]
    return json.dumps({"checks": entries, "counts": summary(checks)}, indent=1) + "\n"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
