"""What a task is called in words: the benchmark's own sentence, with which it is evaluated, and others of ours."""

from collections.abc import Mapping

from rdvla.envs.calvin.tasks import COLOURS, TASKS

_OF_ANY_COLOUR: Mapping[str, tuple[str, ...]] = {
    "rotate_{}_block_right": (
        "take the {} block and rotate it to the right",
        "turn the {} block clockwise",
        "give the {} block a turn to the right",
        "grasp the {} block and twist it right",
    ),
    "rotate_{}_block_left": (
        "take the {} block and rotate it to the left",
        "turn the {} block counterclockwise",
        "give the {} block a turn to the left",
        "grasp the {} block and twist it left",
    ),
    "push_{}_block_right": (
        "go push the {} block right",
        "shove the {} block to the right side",
        "move the {} block over to the right",
        "let the {} block slide right",
    ),
    "push_{}_block_left": (
        "go push the {} block left",
        "shove the {} block to the left side",
        "move the {} block over to the left",
        "let the {} block slide left",
    ),
    "lift_{}_block_table": (
        "grasp and lift the {} block",
        "pick the {} block up from the table",
        "take the {} block off the table",
        "raise the {} block above the tabletop",
    ),
    "lift_{}_block_slider": (
        "lift the {} block from the sliding cabinet",
        "pick up the {} block behind the sliding door",
        "get the {} block out of the sliding cabinet",
        "raise the {} block that lies in the cabinet",
    ),
    "lift_{}_block_drawer": (
        "Take the {} block from the drawer",
        "pick up the {} block that is in the drawer",
        "get the {} block out of the drawer",
        "raise the {} block from the drawer",
    ),
}

_OTHERS: Mapping[str, tuple[str, ...]] = {
    "move_slider_left": (
        "push the sliding door to the left side",
        "slide the door left",
        "move the cabinet door over to the left",
        "shift the slider to its left end",
    ),
    "move_slider_right": (
        "push the sliding door to the right side",
        "slide the door right",
        "move the cabinet door over to the right",
        "shift the slider to its right end",
    ),
    "open_drawer": (
        "pull the handle to open the drawer",
        "open the drawer",
        "draw the drawer out by its handle",
        "get the drawer open",
    ),
    "close_drawer": (
        "push the handle to close the drawer",
        "close the drawer",
        "shut the drawer with a push",
        "push the drawer in",
    ),
    "place_in_slider": (
        "store the grasped block in the sliding cabinet",
        "put the block you hold into the cabinet",
        "set the block down behind the sliding door",
        "lay the held block in the sliding cabinet",
    ),
    "place_in_drawer": (
        "store the grasped block in the drawer",
        "put the block you hold into the drawer",
        "set the block down in the open drawer",
        "drop the held block into the drawer",
    ),
    "stack_block": (
        "stack the grasped block",
        "put the block you hold on top of another one",
        "set the held block on another block",
        "make a tower with the block in your hand",
    ),
    "unstack_block": (
        "remove the stacked block",
        "take the upper block off the lower one",
        "undo the tower of blocks",
        "take the tower apart",
    ),
    "turn_on_lightbulb": (
        "use the switch to turn on the light bulb",
        "switch the yellow light on",
        "move the switch up so that the bulb lights",
        "make the light bulb shine",
    ),
    "turn_off_lightbulb": (
        "use the switch to turn off the light bulb",
        "switch the yellow light off",
        "move the switch down so that the bulb goes out",
        "make the light bulb dark",
    ),
    "turn_on_led": (
        "press the button to turn on the led light",
        "push the button so that the green light comes on",
        "make the led shine green",
        "switch the led on",
    ),
    "turn_off_led": (
        "press the button to turn off the led light",
        "push the button so that the green light goes out",
        "make the led dark",
        "switch the led off",
    ),
    "push_into_drawer": (
        "slide the block that it falls into the drawer",
        "push the block off the table into the drawer",
        "let the block drop into the open drawer",
        "sweep the block into the drawer",
    ),
}


def _all_sentences() -> dict[str, tuple[str, ...]]:
    coloured = {
        name.format(colour): tuple(sentence.format(colour) for sentence in sentences)
        for name, sentences in _OF_ANY_COLOUR.items()
        for colour in COLOURS
    }
    return {task: (coloured | dict(_OTHERS))[task] for task in TASKS}


SENTENCES: Mapping[str, tuple[str, ...]] = _all_sentences()
"""Task -> the benchmark's validation sentence, then ours."""
