"""The card of a collection: what it counts and describes."""

from rdvla.collect.card import dataset_card
from rdvla.embodiment import LIBERO


def test_the_card_of_pictures_at_every_step_speaks_of_no_rows_between():
    row = {"suite": "chain", "task_id": 0, "stage": "one", "instruction": "do one", "length": 3, "versions": {}}
    card = dataset_card({"render_every": 1, "seed": 0}, LIBERO, [row])
    assert "rendered at every" not in card
    assert "taken at this row |\n\nWhat was executed" in card


def test_the_card_counts_a_task_once_whatever_its_scenes_and_sentences():
    rows = [
        {"suite": suite, "task_id": 0, "stage": stage, "instruction": f"{words} {stage}", "length": 3, "versions": {}}
        for suite in ("calvin_a", "calvin_b")
        for stage in ("open_drawer", "stack_block")
        for words in ("do", "please")
    ]
    assert "8 episodes, 24 rows, 2 tasks, " in dataset_card({"render_every": 1, "seed": 0}, LIBERO, rows)
