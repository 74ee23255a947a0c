"""Which rows of a file may be unusable, and which are long: every row is looked at, and no text becomes tokens.

Types and ids are looked at as whole columns of Arrow data, what chats and prompts say row by row: 1 s for 100k rows.

`part` is a file as a `datasets.Dataset`. Every answer is an array with one entry for each of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np


def strange_ids(tokenizer: Any) -> list[int]:
    """Ids that no text has: the unknown and the padding token, unless they also begin or end texts."""
    ends = (tokenizer.eos_token_id, tokenizer.bos_token_id)
    return [i for i in (tokenizer.unk_token_id, tokenizer.pad_token_id) if i is not None and i not in ends]


def wrong_ids(part: Any, column: str, size: int, forbidden: Collection[int], first: int | None = None) -> Any:
    """Rows with an id outside [0, size), or with a forbidden one among their first so many.

    In a column of another type every value is wrong.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    found = np.zeros(len(part), dtype=bool)
    for start, chunk in _chunks(part, column):
        if not _is_list(chunk.type) or not pa.types.is_integer(chunk.type.value_type):
            found[start : start + len(chunk)] = _flags(chunk.is_valid())
            continue
        ids, parents = chunk.flatten(), pc.list_parent_indices(chunk).to_numpy()
        strange = _flags(pc.is_in(ids, pa.array(list(forbidden), ids.type)))
        if first is not None:
            strange &= _places(parents) < first
        outside = _flags(pc.or_(pc.less(ids, 0), pc.greater_equal(ids, size)))
        found[start + parents[strange | outside]] = True
    return found


def empty_lists(part: Any, column: str) -> Any:
    """Rows with a list of nothing."""
    import pyarrow.compute as pc

    found = np.zeros(len(part), dtype=bool)
    for start, chunk in _chunks(part, column):
        if _is_list(chunk.type):
            found[start : start + len(chunk)] = _numbers(pc.list_value_length(chunk).fill_null(-1)) == 0
    return found


def other_than_text(part: Any, column: str) -> Any:
    """Rows with a value in a column that is none of texts."""
    return _other_than(part, column, _is_text)


def other_than_names(part: Any, column: str) -> Any:
    """Rows with a value in a column that is none of names with values."""
    import pyarrow.types as types

    return _other_than(part, column, types.is_struct)


def without_any(part: Any, *columns: str) -> Any:
    """Rows that have nothing in any of these columns."""
    found = np.ones(len(part), dtype=bool)
    for column in columns:
        for start, chunk in _chunks(part, column):
            found[start : start + len(chunk)] &= _flags(chunk.is_null())
    return found


def is_text(part: Any, column: str) -> bool:
    """Whether a column holds texts."""
    return any(_is_text(chunk.type) for _, chunk in _chunks(part, column))


def failing(part: Any, columns: Collection[str], test: Callable[[dict[str, Any]], bool]) -> Any:
    """Rows for which `test` is true; it sees each row with these columns, as far as the file has them."""
    there = [column for column in columns if column in part.column_names]
    rows = (
        dict(zip(there, values, strict=True))
        for batch in part.select_columns(there).iter(batch_size=1000)
        for values in zip(*(batch[column] for column in there), strict=True)
    )
    return np.fromiter(map(test, rows), dtype=bool, count=len(part))


def sizes(part: Any, column: str) -> Any:
    """Numbers by which rows compare: characters of a text or of a chat's texts, or the length of a list; else 0."""
    found = np.zeros(len(part), dtype=np.int64)
    for start, chunk in _chunks(part, column):
        found[start : start + len(chunk)] = _sizes(chunk)
    return found


def _sizes(chunk: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    if _is_text(chunk.type):
        return _numbers(pc.utf8_length(chunk))
    if not _is_list(chunk.type):
        return 0
    inner = chunk.type.value_type
    if pa.types.is_struct(inner) and inner.get_field_index("content") >= 0:
        content = pc.struct_field(chunk.flatten(), "content")
        if _is_text(content.type):
            parents = pc.list_parent_indices(chunk).to_numpy()
            return np.bincount(parents, weights=_numbers(pc.utf8_length(content)), minlength=len(chunk))
    return _numbers(pc.list_value_length(chunk))


def _other_than(part: Any, column: str, is_wanted: Callable[[Any], bool]) -> Any:
    found = np.zeros(len(part), dtype=bool)
    for start, chunk in _chunks(part, column):
        if not is_wanted(chunk.type):
            found[start : start + len(chunk)] = _flags(chunk.is_valid())
    return found


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _is_list(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_list(kind) or types.is_large_list(kind))


def _numbers(values: Any) -> Any:
    return values.fill_null(0).to_numpy(zero_copy_only=False)


def _flags(values: Any) -> Any:
    """Booleans; what is nothing counts as true."""
    return values.fill_null(True).to_numpy(zero_copy_only=False)


def _places(parents: Any) -> Any:
    """The place of each value in its own row, from 0, when `parents` are the rows' numbers in ascending order."""
    starts = np.flatnonzero(np.diff(parents, prepend=-1))
    return np.arange(len(parents)) - np.repeat(starts, np.diff(starts, append=len(parents)))


def _chunks(part: Any, column: str) -> Iterator[tuple[int, Any]]:
    """The pieces of a column as they lie on disk, each with the number of its first row; none without the column."""
    if column not in part.column_names:
        return
    start = 0
    for chunk in part.data.column(column).chunks:
        if len(chunk):
            yield start, chunk
        start += len(chunk)
