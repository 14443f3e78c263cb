"""What holds for every test, so that none depends on how busy the machine is."""

import pytest
from hypothesis import HealthCheck, settings

from patience import PATIENCE_S
from rdvla.robot.client import RemotePolicy

settings.register_profile("patient", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("patient")


@pytest.fixture(autouse=True, scope="session")
def patient_clients() -> None:
    """No client gives up, unless a test says when."""
    RemotePolicy.__init__.__kwdefaults__.update(deadline_s=PATIENCE_S, connect_timeout_s=PATIENCE_S)
