"""A robot without motors, as LeRobot's plugins are: it shows drawn pictures and joints and writes down its actions."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.robots import Robot, RobotConfig

JOINTS = [f"joint_{i}.pos" for i in range(8)]
COMMANDS = [f"command_{i}.pos" for i in range(7)]
CAMERAS = ("image", "image2")


@RobotConfig.register_subclass("rehearsal")
@dataclass(kw_only=True)
class RehearsalRobotConfig(RobotConfig):
    log: Path


def seen(step: int) -> dict[str, Any]:
    """What the robot sees after `step` actions: joints as floats, pictures uint8 `[64, 64, 3]`."""
    rng = np.random.default_rng(step)
    joints = (0.1 * rng.normal(size=len(JOINTS))).astype(np.float32)
    pictures = rng.integers(0, 256, (len(CAMERAS), 64, 64, 3), dtype=np.uint8)
    return {**dict(zip(JOINTS, joints.tolist(), strict=True)), **dict(zip(CAMERAS, pictures, strict=True))}


class RehearsalRobot(Robot):
    config_class = RehearsalRobotConfig
    name = "rehearsal"
    is_connected = False
    is_calibrated = True
    cameras = CAMERAS  # LeRobot counts them

    def __init__(self, config: RehearsalRobotConfig) -> None:
        super().__init__(config)
        self.log = config.log
        self.sent = 0

    @property
    def observation_features(self) -> dict[str, Any]:
        return {**dict.fromkeys(JOINTS, float), **dict.fromkeys(CAMERAS, (64, 64, 3))}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(COMMANDS, float)

    def connect(self, calibrate: bool = True) -> None:
        self.is_connected = True

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        return seen(self.sent)

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self.sent += 1
        with self.log.open("a") as log:
            log.write(json.dumps([float(action[name]) for name in COMMANDS]) + "\n")
        return action

    def disconnect(self) -> None:
        self.is_connected = False
