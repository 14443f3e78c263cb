"""A robot's side of a policy server: ask for decisions, turn chunks into commands, keep the commands safe.

    from rdvla.client import ActionGuard, ActionLimits, Background, ControlLoop, Pacer, RemotePolicy, ThreadedDecider

Needs numpy, msgpack and websockets; importing it loads no network and no simulator.
"""

from rdvla.execution import Background, Decision, Entry, Ledger, Strategy, Synchronous, TemporalEnsembling
from rdvla.policy import Ask
from rdvla.robot.client import RemotePolicy
from rdvla.robot.clock import Clock, SystemClock
from rdvla.robot.connection import Connection, ConnectionLost
from rdvla.robot.guard import ActionGuard, ActionLimits, Intervention
from rdvla.robot.loop import ControlLoop, Decider, Outcome, Pacer, RequestEvent, ThreadedDecider
from rdvla.stops import StopRule
from rdvla.types import ActionChunk, Observation
from rdvla.wire.protocol import BadRequest, Busy, DeadlineMissed, RateLimited, RequestRefused, ShuttingDown

__all__ = [
    "ActionChunk",
    "ActionGuard",
    "ActionLimits",
    "Ask",
    "Background",
    "BadRequest",
    "Busy",
    "Clock",
    "Connection",
    "ConnectionLost",
    "ControlLoop",
    "DeadlineMissed",
    "Decider",
    "Decision",
    "Entry",
    "Intervention",
    "Ledger",
    "Observation",
    "Outcome",
    "Pacer",
    "RateLimited",
    "RemotePolicy",
    "RequestEvent",
    "RequestRefused",
    "ShuttingDown",
    "StopRule",
    "Strategy",
    "Synchronous",
    "SystemClock",
    "TemporalEnsembling",
    "ThreadedDecider",
]
