"""How chunks of actions become one action per control step, in a simulator and on a robot. No torch.

A strategy says when to ask and what to execute. An `Executor` drives it in lockstep with a simulator;
`rdvla.robot.loop.ControlLoop` drives the same strategies on a robot, where answers take time.
"""

from rdvla.execution.executor import Executor, StandStill
from rdvla.execution.ledger import Decision, Entry, Fate, Ledger
from rdvla.execution.strategies import (
    STRATEGIES,
    SYNCHRONOUS,
    Background,
    CalvinReleased,
    Strategy,
    Synchronous,
    TemporalEnsembling,
    execution_label,
    make_strategy,
)

__all__ = [
    "STRATEGIES", "SYNCHRONOUS", "Background", "CalvinReleased", "Decision", "Entry", "Executor", "Fate", "Ledger",
    "StandStill", "Strategy", "Synchronous", "TemporalEnsembling", "execution_label", "make_strategy",
]  # fmt: skip
