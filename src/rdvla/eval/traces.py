"""What every stopping rule would have seen in an episode, as a table in a file: `traces/*.npz`.

Columns of equal length, one row per decision and iteration, so that two lines read a whole evaluation:

    files = Path("runs/a/traces").glob("*.npz")
    table = pandas.concat(pandas.DataFrame(dict(numpy.load(file))).assign(episode=file.stem) for file in files)
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdvla.errors import ConfigError, RecordError
from rdvla.files import DAMAGED_ARRAYS, read_arrays
from rdvla.types import TO_FULL, ActionChunk

DECISION, ITERATION, EXECUTED = "decision", "iteration", "executed"

Trace = Mapping[str, NDArray[Any]]
"""Columns of one episode: int32 `decision` from 0 and `iteration` from 1, bool `executed` (the iteration whose actions
were executed), and float32 for every rule (not a number at the first iteration) and for `to_full`."""


def encode(decisions: Sequence[ActionChunk]) -> bytes:
    """Return the file of an episode with these decisions, at least one; their traces have one depth.

    Raises:
        ConfigError: they have no trace, or took more iterations than were traced.
    """
    if not all(chunk.trace for chunk in decisions):
        raise ConfigError("this policy gives no traces (a server may be too old for them); drop --trace-depth.")
    names = list(decisions[0].trace)
    depth = len(decisions[0].trace[names[0]])
    deepest = max(chunk.num_recurrences for chunk in decisions)
    if deepest > depth:
        raise ConfigError(f"a decision took {deepest} iterations, {depth} were traced; give a larger --trace-depth.")
    iterations = np.tile(np.arange(1, depth + 1, dtype=np.int32), len(decisions))
    stops = np.repeat([chunk.num_recurrences for chunk in decisions], depth)
    columns: dict[str, NDArray[Any]] = {
        DECISION: np.repeat(np.arange(len(decisions), dtype=np.int32), depth),
        ITERATION: iterations,
        EXECUTED: iterations == stops,
    }
    columns |= {name: np.concatenate([chunk.trace[name] for chunk in decisions]) for name in names}
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **columns)
    return file.getvalue()


def read_trace(path: Path) -> Trace:
    """Return the columns of an episode.

    Raises:
        RecordError: the file is missing or damaged.
    """
    try:
        columns = read_arrays(path)
    except DAMAGED_ARRAYS as error:
        why = "it is not there" if isinstance(error, FileNotFoundError) else error
        raise RecordError(
            f"cannot read the trace '{path}': {why}; copy it there, or play the episode again into another folder."
        ) from None
    missing = {DECISION, ITERATION, EXECUTED, TO_FULL} - columns.keys()
    if missing or len({len(column) for column in columns.values()}) != 1:
        raise RecordError(f"'{path}' is no trace: columns {', '.join(sorted(missing)) or 'of different lengths'}.")
    return columns
