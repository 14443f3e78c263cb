"""The dataset card (README.md) of a collection."""

from collections.abc import Mapping, Sequence
from typing import Any

from rdvla.data.lerobot_meta import camera_key
from rdvla.embodiment import Embodiment

_CARD = """\
---
license: apache-2.0
task_categories:
- robotics
tags:
- LeRobot
- rdvla
configs:
- config_name: default
  data_files: data/*/*.parquet
---

# Demonstrations of scripted experts

{episodes} episodes, {rows} rows, {tasks} tasks, recorded with `rdvla collect`, in the format LeRobotDataset v3.0.

## What is in a row

| feature | meaning |
|---|---|
{cameras}
| `observation.state` | {state} |
| `action` | what the expert wants: {action}; deltas in [-1, 1], {gripper} |
| `frame_is_fresh` | true if the images were taken at this row |

{rendering}What was executed differs from `action`: small correlated noise disturbs the motion, so that the data covers
recoveries, and the label is what the expert wants in the state as it is. Episodes that did not succeed were dropped.
Placements were sampled by the environment's own reset with a seed (collection seed {seed}), never taken from the
benchmark's bundled initial states. Where every episode came from (suite, task, seeds) is in `collect.json`.
{takeover}
## Tasks

| suite | task | instruction | episodes | mean length |
|---|---|---|---|---|
{table}

## Made with

{versions}
"""


_RENDERING = """\
**Images are rendered at every {render_every}. control step only** (rendering is most of the cost of simulation on a
CPU). The rows between show the last image again and have `frame_is_fresh` = false; their state and action are their
own. To train on matching images and actions start samples at fresh rows only; the action chunk that follows has a
label at every step. The reader of rdvla does that by itself.

"""

_TAKEOVER = """\
Episodes begin where another policy had got to ({takeover}).
Its steps are not in the data; placements that it solved to the end by itself count as failed attempts.
"""


_GRIPPER = {"open_is_negative": "gripper -1 open / +1 close", "open_is_positive": "gripper +1 open / -1 close"}


def dataset_card(settings: Mapping[str, Any], robot: Embodiment, episodes: Sequence[Mapping[str, Any]]) -> str:
    """Return the card for `episodes` of `robot` as `assemble` describes them, recorded with `settings`."""
    lengths_of: dict[tuple[str, int, str], list[int]] = {}
    for row in episodes:
        lengths_of.setdefault((row["suite"], row["task_id"], row["instruction"]), []).append(row["length"])
    table = [
        f"| {suite} | {task_id} | {instruction} | {len(lengths)} | {sum(lengths) / len(lengths):.0f} |"
        for (suite, task_id, instruction), lengths in lengths_of.items()
    ]
    versions = sorted({f"- {name} {version}" for row in episodes for name, version in row["versions"].items()})
    return _CARD.format(
        episodes=len(episodes),
        rows=sum(row["length"] for row in episodes),
        tasks=len({row["stage"] for row in episodes}),
        cameras="\n".join(f"| `{camera_key(name)}` | camera {name}, upright |" for name in robot.cameras),
        rendering=_RENDERING.format(**settings) if settings["render_every"] > 1 else "",
        state=", ".join(robot.state_names),
        action=", ".join(robot.action_names),
        gripper=_GRIPPER.get(robot.gripper, "no gripper"),
        seed=settings["seed"],
        takeover=_TAKEOVER.format(**settings) if "takeover" in settings else "",
        table="\n".join(table),
        versions="\n".join(versions) or "- versions were not recorded",
    )
