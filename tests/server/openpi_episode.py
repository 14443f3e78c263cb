"""Runs in the environment of the stock openpi client: one episode, the simulator being another process.

Protocol on stdin/stdout, one JSON line each way per control step: the test sends the observation (images as files
would be, base64), this program answers with the next action of the stock ActionChunkBroker.
"""

import base64
import json
import sys

import numpy as np
from openpi_client import action_chunk_broker, image_tools, websocket_client_policy


def say(values: dict) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def main() -> None:
    url, horizon, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    policy = websocket_client_policy.WebsocketClientPolicy(host=url)
    broker = action_chunk_broker.ActionChunkBroker(policy, horizon)
    say({"numpy": np.__version__, "metadata": policy.get_server_metadata()})
    for line in sys.stdin:
        request = json.loads(line)
        images = {
            key: np.frombuffer(base64.b64decode(image["data"]), np.uint8).reshape(image["shape"])
            for key, image in request["images"].items()
        }
        if size:
            images = {key: image_tools.resize_with_pad(image, size, size) for key, image in images.items()}
        observation = {
            **images,
            "observation/state": np.asarray(request["state"]),
            "prompt": request["prompt"],
            **request.get("options", {}),
        }
        result = broker.infer(observation)
        extras = {key: value for key, value in result.items() if key != "actions"}
        say({"action": np.asarray(result["actions"]).tolist(), **extras})


if __name__ == "__main__":
    main()
