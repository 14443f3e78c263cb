"""What CALVIN's expert can do, without the simulator."""

from rdvla.envs.calvin.tasks import TASKS
from rdvla.experts.calvin.expert import SKILLS


def test_there_is_a_skill_for_every_task():
    assert SKILLS.keys() == TASKS.keys()
