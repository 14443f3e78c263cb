"""Runs in an environment that has rdvla-client and nothing else of ours: one episode against a server.

    python robot_episode.py URL

prints one JSON object: the commands of every step, what became of the actions, where rdvla is and what it loaded.
"""

import json
import sys

import numpy as np

import rdvla
from rdvla.client import ActionGuard, ActionLimits, ControlLoop, RemotePolicy, Synchronous, ThreadedDecider
from rdvla.types import Observation

GOAL = 1.0
PATIENCE_S = 600.0


def main() -> None:
    limits = ActionLimits(low=np.full(2, -0.2), high=np.full(2, 0.2))
    with RemotePolicy(sys.argv[1], deadline_s=PATIENCE_S, connect_timeout_s=PATIENCE_S) as policy:
        decider = ThreadedDecider(policy)
        guard = ActionGuard(limits, stop_action=np.zeros(2))
        loop = ControlLoop(decider, Synchronous(5), guard, deadline_s=PATIENCE_S)
        loop.reset(seed=3)
        commands, position = [], 0.0
        while position < GOAL and len(commands) < 100:
            command = loop.act(lambda now=position: look(now))
            commands.append(command.tolist())
            position += float(command[0])
        loop.reset()
        decider.close()
    told = {
        "commands": commands,
        "counts": dict(loop.ledger.counts),
        "interventions": len(guard.interventions),
        "where": rdvla.__file__,
        "loaded": sorted({name.partition(".")[0] for name in sys.modules}),
    }
    sys.stdout.write(json.dumps(told) + "\n")


def look(position: float) -> Observation:
    image = np.full((8, 8, 3), int(200 * min(max(position, 0.0), 1.0)), np.uint8)
    return Observation({"primary": image}, np.array([position], np.float32), "go to one")


if __name__ == "__main__":
    main()
