"""Rows of a Parquet file, a few at a time, never larger in memory than a row may be."""

from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from app.domain.containers import BrokenFile, pyarrow
from app.domain.errors import TooLarge
from app.domain.lines import too_long
from app.domain.row_types import MAX_LINE_BYTES, BadRow, names_of

_BATCH_ROWS = 64
_BATCH_BYTES = 16 * MAX_LINE_BYTES
_BYTES_PER_VALUE = 4


def read(
    file: BinaryIO, *, max_bytes: int | None = None
) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """Yield (row number from 1, values by column) for every row; nulls are left out.

    Raises:
        BrokenFile: The file is damaged, encrypted, or no Parquet.
        TooLarge: It says that it holds more than `max_bytes`.
    """
    pa = pyarrow()
    number = 0
    try:
        for batch in _batches(file, max_bytes):
            for row in _rows(batch):
                number += 1
                yield number, row
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault, not the file's
        raise BrokenFile(
            f"row {number + 1}: the Parquet file is damaged or not supported"
            f" ({names_of([error])}); write it again"
        ) from error


def _batches(file: BinaryIO, max_bytes: int | None) -> Iterator[Any]:
    from pyarrow import parquet  # pyright: ignore[reportMissingTypeStubs]

    open_file: Any = cast(Any, parquet).ParquetFile
    metadata = open_file(file).metadata
    _require_small(metadata, max_bytes)
    _require_unique_names(metadata.schema.to_arrow_schema().names)
    # Kept as references into a dictionary, a text that is repeated a million times is held once.
    leaves = [metadata.schema.column(n) for n in range(metadata.num_columns)]
    texts = [leaf.path for leaf in leaves if leaf.logical_type.type == "STRING"]
    opened = open_file(file, read_dictionary=texts, pre_buffer=False)
    return iter(opened.iter_batches(batch_size=_BATCH_ROWS, use_threads=False))


def _require_small(metadata: Any, max_bytes: int | None) -> None:
    if max_bytes is None:
        return
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    chunks = [group.column(n) for group in groups for n in range(metadata.num_columns)]
    num_bytes = sum(chunk.total_uncompressed_size for chunk in chunks)
    num_values = sum(chunk.num_values for chunk in chunks)
    if max(num_bytes, num_values * _BYTES_PER_VALUE) > max_bytes:
        raise TooLarge(
            f"the file holds more than {max_bytes} bytes once decompressed"
            " (LORAD_MAX_UPLOAD_BYTES)",
            param="file",
        )


def _require_unique_names(names: list[str]) -> None:
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise BrokenFile(f"several columns are named {names_of(repeated)}; give each its own name")


def _rows(batch: Any) -> Iterator[dict[str, Any] | BadRow]:
    if _num_bytes(batch.to_struct_array()) <= _BATCH_BYTES:
        try:
            yield from [_without_nulls(row) for row in batch.to_pylist()]
        except (ValueError, OverflowError):
            pass  # one row has it; who it is shows when they are taken one by one
        else:
            return
    for place in range(batch.num_rows):
        yield _row(batch.slice(place, 1))


def _row(one: Any) -> dict[str, Any] | BadRow:
    if _num_bytes(one.to_struct_array()) > MAX_LINE_BYTES:
        return too_long(MAX_LINE_BYTES)
    try:
        return _without_nulls(one.to_pylist()[0])
    except UnicodeDecodeError:
        return BadRow("not_utf8", "a text is not UTF-8; write the file with UTF-8 strings")
    except (ValueError, OverflowError) as error:
        return BadRow("bad_value", f"a value cannot be read: {names_of([error])}")


def _num_bytes(array: Any) -> int:
    """Return the bytes of an array's values if every one were written out."""
    import pyarrow.compute as pc  # pyright: ignore[reportMissingTypeStubs]
    from pyarrow import types  # pyright: ignore[reportMissingTypeStubs]

    kinds, compute = cast(Any, types), cast(Any, pc)
    if kinds.is_dictionary(array.type):
        sizes = compute.binary_length(array.dictionary).take(array.indices)
        return compute.sum(sizes).as_py() or 0
    if kinds.is_struct(array.type):
        return sum(map(_num_bytes, array.flatten()))
    if kinds.is_list(array.type) or kinds.is_large_list(array.type):
        return _num_bytes(array.flatten())
    return array.nbytes


def _without_nulls(value: Any) -> Any:
    """Leave nulls out: a table has every key in every row, with nothing in most of them."""
    if isinstance(value, dict):
        items = cast(dict[str, Any], value).items()
        return {key: _without_nulls(item) for key, item in items if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in cast(list[Any], value)]
    return value
