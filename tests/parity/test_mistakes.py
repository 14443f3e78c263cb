"""The checks are worth something only if they catch mistakes: make each one and see."""

import mistakes
import pytest

from rdvla.doctor.golden import run_golden
from rdvla.doctor.reference import check_reference

BUILT_IN = [name for name in mistakes.MISTAKES if name not in mistakes.ONLY_RECORDED]


def test_without_a_mistake_nothing_fails():
    checks = check_reference()
    assert len(checks) > 15
    assert mistakes.caught_by(checks) == []


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_built_in_numbers_catch(name):
    with mistakes.made(name):
        assert mistakes.caught_by(check_reference())


@pytest.mark.slow
@pytest.mark.skipif(not mistakes.GOLDEN.is_dir(), reason="the recorded reference tensors are not on this machine")
@pytest.mark.parametrize("name", mistakes.ONLY_RECORDED)
def test_the_recorded_values_catch(name):
    with mistakes.made(name):
        checks = [check for case in run_golden(mistakes.GOLDEN) for check in case]
    assert mistakes.caught_by(checks)
