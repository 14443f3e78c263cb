"""Reads what several commands take: numbers and ranges, names, depths, and where episodes start."""

from rdvla.errors import ConfigError
from rdvla.stops import StopRule

MAX_RANGE = 100_000
"""Numbers in one range such as 0-9: more are a slip of the hand."""


def parse_indices(text: str, *, field: str) -> tuple[int, ...]:
    """Read whole numbers and ranges, e.g. `3,9` or `0-4,10-19` (both ends included).

    Raises:
        ConfigError: not numbers, a range that runs backwards or is absurdly long, or a repeated number. The message
            names `field`.
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"{field} '{text}': '{part}' is not a whole number or a range such as 10-19.")
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise ConfigError(f"{field} '{text}': the range '{part}' runs backwards; write {high}-{low}.")
        if high - low >= MAX_RANGE:
            raise ConfigError(f"{field} '{text}': the range '{part}' is longer than {MAX_RANGE:,} numbers.")
        numbers.extend(range(low, high + 1))
    if len(set(numbers)) != len(numbers):
        raise ConfigError(f"{field} '{text}' repeats a number.")
    return tuple(numbers)


def parse_depths(text: str) -> tuple[StopRule, ...]:
    """Read depths such as `1,2,4,8,12` as rules of fixed depth.

    Raises:
        ConfigError: not whole numbers of at least 1.
    """
    depths = parse_indices(text, field="depth")
    if 0 in depths:
        raise ConfigError(f"depth '{text}': a policy must iterate at least once; the smallest depth is 1.")
    return tuple(StopRule.fixed(depth) for depth in depths)


def parse_names(text: str, *, field: str) -> tuple[str, ...]:
    """Read a comma-separated list of names.

    Raises:
        ConfigError: an empty or repeated name.
    """
    names = tuple(part.strip() for part in text.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise ConfigError(f"{field} '{text}' must be a list of different names, such as a,b.")
    return names


def choose_starts(episodes: int | None, init_states: str | None, seeds: str | None) -> dict[str, tuple[int, ...]]:
    """Return the field of `EvalConfig` that says where episodes start, `init_states` or `seeds`, and its value.

    Args:
        episodes: episodes per task and rule; None means 10, or as many as are named.
        init_states: bundled states, e.g. `10-19`; None starts from 0, unless there are seeds.
        seeds: seeds of the environment's own sampler, e.g. `5000-5019`.

    Raises:
        ConfigError: episodes below 1 or more of them than starts named, or both kinds of starts.
    """
    if episodes is not None and episodes < 1:
        raise ConfigError(f"episodes must be at least 1, found {episodes}.")
    if init_states is not None and seeds is not None:
        raise ConfigError(
            "an episode starts from a bundled state (chain) or a seed; drop --init-states, --chains or --seeds."
        )
    if init_states is None and seeds is None:
        return {"init_states": tuple(range(10 if episodes is None else episodes))}
    field, text = ("init-states", init_states) if seeds is None else ("seeds", seeds)
    assert text is not None
    named = parse_indices(text, field=field)
    if episodes is not None and episodes > len(named):
        raise ConfigError(f"episodes ({episodes}) exceeds the {len(named)} numbers in {field} '{text}'.")
    return {field.replace("-", "_"): named[:episodes]}


def asked_by(episodes: int | None, init_states: str | None, highest: int) -> str:
    """Return what asks for the bundled state `highest`, for a message: the options of `choose_starts`, or neither."""
    if init_states is not None:
        return f"--init-states (--chains) names {highest}"
    if episodes is not None:
        return f"--episodes is {highest + 1}"
    return f"without --init-states (--chains) or --seeds the states 0-{highest} are played"
