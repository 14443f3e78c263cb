"""What holds for every test."""

import pytest

from patience import PATIENCE_S
from rdvla.robot.client import RemotePolicy


@pytest.fixture(autouse=True, scope="session")
def patient_clients() -> None:
    """However busy the machine is, no client gives up, unless a test says when."""
    RemotePolicy.__init__.__kwdefaults__.update(deadline_s=PATIENCE_S, connect_timeout_s=PATIENCE_S)
