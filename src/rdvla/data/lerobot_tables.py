"""Parquet files of a LeRobotDataset: Arrow types of features, tables that roll over, reading with clear errors."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdvla.data.lerobot_meta import CHUNKS_SIZE, Feature
from rdvla.errors import DatasetError, MissingExtraError
from rdvla.files import refuse_pointer, writing

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
except ImportError as error:
    raise MissingExtraError("pyarrow", "data") from error

IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
_DAMAGE = (pa.ArrowException, OSError)
_DICTIONARY_BYTES = 64 * 1024 * 1024
"""Images repeated over several rows are stored once per episode, as long as the dictionary page may hold them all."""


class TableSink:
    """Parquet files written one row group at a time, a new file once the current one reaches the limit."""

    def __init__(self, root: Path, template: str, limit_mb: float) -> None:
        """Write below `root` at `template` (with `{chunk_index}` and `{file_index}`), about `limit_mb` per file."""
        self._root = root
        self._template = template
        self._limit = limit_mb * 1024 * 1024
        self._number = -1
        self._writer: Any = None
        self._file: Any = None

    @property
    def location(self) -> tuple[int, int]:
        """Chunk and file index that the next table goes to."""
        return file_location(self._number + (1 if self._is_full else 0))

    def append(self, table: Any) -> None:
        """Write `table` as one row group.

        Raises:
            StorageError: the disk refuses.
        """
        if self._is_full:
            self.close()
            self._open(table.schema)
        with writing(self._path):
            self._writer.write_table(table, row_group_size=len(table))

    def close(self) -> None:
        """Finish the current file; without this it has no footer and cannot be read."""
        writer, file = self._writer, self._file
        self._writer = self._file = None
        if writer is not None:
            with writing(self._path):
                writer.close()
                file.close()

    @property
    def _is_full(self) -> bool:
        return self._number < 0 or (self._file is not None and self._file.tell() >= self._limit)

    @property
    def _path(self) -> Path:
        return file_path(self._root, self._template, max(self._number, 0))

    def _open(self, schema: Any) -> None:
        self._number += 1
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = pa.OSFile(str(self._path), "wb")
            self._writer = pq.ParquetWriter(
                self._file, schema, compression="snappy", dictionary_pagesize_limit=_DICTIONARY_BYTES
            )


def file_location(number: int) -> tuple[int, int]:
    """Return chunk and file index of the `number`-th file."""
    return number // CHUNKS_SIZE, number % CHUNKS_SIZE


def file_path(root: Path, template: str, number: int, **names: str) -> Path:
    """Return the path of the `number`-th file of a template."""
    chunk, file = file_location(number)
    return root / template.format(chunk_index=chunk, file_index=file, **names)


def arrow_type(feature: Feature) -> Any:
    """Return the Arrow type of a feature's column: scalars for shape (1,), fixed-size lists, image structs.

    Raises:
        DatasetError: more than one axis, or a dtype that Arrow does not know.
    """
    if feature.dtype == "image":
        return IMAGE_TYPE
    try:
        value = pa.bool_() if feature.dtype == "bool" else pa.type_for_alias(feature.dtype)
    except ValueError:
        raise DatasetError(f"a column cannot have dtype '{feature.dtype}'.") from None
    if feature.shape == (1,):
        return value
    if len(feature.shape) != 1:
        raise DatasetError(f"a column of shape {list(feature.shape)} is not supported; flatten it to one axis.")
    return pa.list_(value, feature.shape[0])


def column_array(values: NDArray[Any], feature: Feature) -> Any:
    """Return `values` `[N, *shape]` as the Arrow column of `feature`."""
    kind = arrow_type(feature)
    if feature.shape == (1,):
        return pa.array(values.reshape(-1), kind)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind.value_type), feature.shape[0])


def image_array(encoded: Sequence[bytes]) -> Any:
    """Return encoded images (PNG or JPEG) as an Arrow column of an `image` feature."""
    return pa.array([{"bytes": content, "path": None} for content in encoded], IMAGE_TYPE)


def table_of(columns: Mapping[str, Any]) -> Any:
    """Return Arrow columns of equal length as a table."""
    return pa.table(dict(columns))


def write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """Write `tasks.parquet`: a pandas frame with index `task` and column `task_index`, row i holding index i."""
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": storage, "metadata": None}
        for name, kind, storage in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.2.0"}
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    with writing(path):
        pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


def read_table(path: Path, columns: Sequence[str] | None = None) -> Any:
    """Read a Parquet file into an Arrow table.

    Raises:
        DatasetError: missing, damaged, or without one of `columns`.
    """
    with reading(path, *_DAMAGE), pq.ParquetFile(path) as file:
        missing = [name for name in columns or () if name not in file.schema_arrow.names]
        if missing:
            raise DatasetError(f"'{path}' has no column {', '.join(missing)}; it has {file.schema_arrow.names}.")
        return file.read(columns=None if columns is None else list(columns))


def column_names(path: Path) -> list[str]:
    """Return the column names of a Parquet file.

    Raises:
        DatasetError: missing or damaged.
    """
    with reading(path, *_DAMAGE):
        return list(pq.read_schema(path).names)


def read_episode(path: Path, columns: Sequence[str], episode_index: int) -> Any:
    """Read some columns of one episode's rows; other episodes' row groups are skipped.

    Raises:
        DatasetError: missing, damaged, or without one of `columns`.
    """
    missing = [name for name in columns if name not in column_names(path)]
    if missing:
        raise DatasetError(f"'{path}' has no column {', '.join(missing)}; copy the dataset again.")
    with reading(path, *_DAMAGE):
        return pq.read_table(path, columns=list(columns), filters=[("episode_index", "=", episode_index)])


def read_tasks(path: Path) -> dict[int, str]:
    """Read `tasks.parquet`: task index -> sentence.

    Raises:
        DatasetError: missing, damaged, or without sentences.
    """
    table = read_table(path)
    columns = [name for name in table.column_names if name in ("task", "__index_level_0__")]
    if not columns or "task_index" not in table.column_names:
        raise DatasetError(f"'{path}' needs the columns task and task_index, found {table.column_names}.")
    return dict(zip(table["task_index"].to_pylist(), table[columns[0]].to_pylist(), strict=True))


def numeric_column(table: Any, key: str, feature: Feature, path: Path) -> NDArray[Any]:
    """Return the column `key` as an array `[N, D]` with the feature's dtype.

    Raises:
        DatasetError: a dtype that is no number's, empty cells, or rows that do not have the declared size.
    """
    if not feature.is_number:
        raise DatasetError(f"feature '{key}': meta/info.json says dtype '{feature.dtype}', which is no kind of number.")
    column = _full(table[key].combine_chunks(), key, path)
    sizes = list(feature.shape)
    while not pa.types.is_primitive(column.type):  # extension arrays and lists of lists, as the Hub's tools write them
        column = column.storage if isinstance(column, pa.ExtensionArray) else _flatten(column, key, sizes, path)
        column = _full(column, key, path)
    values = column.to_numpy(zero_copy_only=False)
    size = int(np.prod(feature.shape))
    if len(values) != size * len(table):
        raise DatasetError(
            f"'{path}': column '{key}' has {len(values)} values in {len(table)} rows, "
            f"but meta/info.json declares shape {list(feature.shape)}; the two do not belong together."
        )
    return _cast(values, key, feature.dtype, path).reshape(len(table), size)


def _full(column: Any, key: str, path: Path) -> Any:
    if column.null_count:
        raise DatasetError(f"'{path}': column '{key}' has {column.null_count} empty cells; record the dataset again.")
    return column


def _flatten(column: Any, key: str, shape: Sequence[int], path: Path) -> Any:
    """Open one level of lists, all of the same length: values of a row must not slip into the next."""
    if not hasattr(column, "flatten") or pa.types.is_struct(column.type):
        raise DatasetError(f"'{path}': column '{key}' holds {column.type}, not numbers; name another feature.")
    lengths = np.unique(pc.list_value_length(column).to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise DatasetError(
            f"'{path}': column '{key}' has rows of {lengths[0]} to {lengths[-1]} values, but meta/info.json declares "
            f"shape {list(shape)}; remove those episodes."
        )
    return column.flatten()


def _cast(values: NDArray[Any], key: str, dtype: str, path: Path) -> NDArray[Any]:
    """Bring values to the declared dtype, float16 to float32; whole numbers must have been whole before."""
    wanted = np.dtype(dtype)
    if wanted.kind == "f":
        wanted = np.promote_types(wanted, np.float32)  # what is stored may be finer than float16
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(wanted)
    if wanted.kind in "iub" and not np.array_equal(cast, values):
        raise DatasetError(
            f"'{path}': column '{key}' holds {values.dtype}, which meta/info.json's dtype '{dtype}' would cut short; "
            f"declare '{values.dtype}' there."
        )
    return cast


def episode_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return the rows of `meta/episodes` as an Arrow table."""
    return pa.Table.from_pylist([dict(row) for row in rows])


@contextmanager
def reading(path: Path, *damage: type[Exception]) -> Iterator[None]:
    """Turn what reading the file `path` raises, `damage` among it, into errors that name it and the fix.

    Raises:
        DatasetError: it is missing, a Git LFS pointer, or damaged.
    """
    try:
        refuse_pointer(path, DatasetError)
        yield
    except FileNotFoundError:
        raise DatasetError(f"'{path}' is missing; copy the dataset again, all of its files.") from None
    except damage as error:
        raise DatasetError(
            f"'{path}' is damaged or was never finished ({_first_line(error)}); copy the dataset again or repeat the "
            "recording."
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
