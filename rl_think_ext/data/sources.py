"""Texts and chats out of text files, JSON lines, Parquet, folders of these, or a `datasets` name, one at a time.

Nothing is unpickled and no code of a repository runs. A row that cannot be used is left out and counted by reason;
too many of them, or a column that is not there, is an error that names the file, the row and the column.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rl_think_ext.data.cells import MAX_BYTES, Columns, raw_rows
from rl_think_ext.data.cells import source_name as source_name
from rl_think_ext.errors import UserError

_MIN_ROWS, _EARLY_ROWS = 20, 1000  # a share means something from 20 rows on; before the end, from 1,000 on


@dataclass(frozen=True)
class Document:
    """One text; `id` is unique within a source, `source` is the name of its file without the folders above it."""

    id: str
    text: str
    source: str


@dataclass
class Tally:
    """How many rows were read, and how many were left out for which reason."""

    rows: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first: str = ""

    def skip(self, reason: str, place: str) -> None:
        """Count one row that cannot be used; the first place is kept for the error."""
        self.skipped[reason] += 1
        self.first = self.first or f"{place}: {reason}"

    def check(self, max_share: float, min_rows: int = _MIN_ROWS) -> None:
        """Stop where too many rows cannot be used.

        Raises:
            UserError: more than `max_share` of at least `min_rows` rows were skipped.
        """
        num_skipped = self.skipped.total()
        if self.rows >= min_rows and num_skipped > max_share * self.rows:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.skipped.most_common())
            raise UserError(
                f"{num_skipped} of {self.rows} rows cannot be used ({reasons}), more than max_skipped_share "
                f"{max_share:g}; the first is {self.first}"
            )


class Unusable(Exception):  # noqa: N818 - a verdict on a row, not a failure
    """What is wrong with the value of one row, in a few words that become a count in the card."""


T = TypeVar("T")
TEXT = Columns()


@dataclass(frozen=True)
class Usable(Generic[T]):
    """A row that can be used: its file and number, its id, and what was made of its value."""

    file: str
    number: int
    id: str
    value: T


def read_documents(
    source: str,
    columns: Columns = TEXT,
    *,
    max_skipped_share: float = 0.2,
    tally: Tally | None = None,
) -> Iterator[Document]:
    """Stream the documents of a file, a folder or a `datasets` name; `tally` is filled on the way.

    A .txt file is one document. Ids come from `columns.id` where it is there and from the row number otherwise; in
    a folder the file's name stands before them. A second row with an id is skipped: as a rule it is the same text
    once more, and under another id it could stand in the training and in the test split.

    Raises:
        UserError: nothing there, a column missing or of the wrong type, too many unusable rows, no document at all.
    """
    for row in read_rows(source, columns, check_text, max_skipped_share=max_skipped_share, tally=tally):
        yield Document(row.id, row.value, row.file)


def read_rows(
    source: str,
    columns: Columns,
    parse: Callable[[object], T],
    *,
    max_skipped_share: float = 0.2,
    tally: Tally | None = None,
    what: str = "document",
) -> Iterator[Usable[T]]:
    """Stream the rows of a source whose value `parse` can use; it raises Unusable for the others, which are counted.

    Raises:
        UserError: as read_documents.
    """
    tally = Tally() if tally is None else tally
    seen: set[bytes] = set()
    num_used = 0
    for raw in raw_rows(source, columns):
        tally.rows += 1
        key = hashlib.blake2b(raw.id.encode(), digest_size=8).digest()
        column = raw.cell.column
        try:
            if raw.cell.fault:
                raise Unusable(raw.cell.fault)
            value = parse(raw.cell.value)
            if key in seen:
                column = columns.id
                raise Unusable(f"duplicate {columns.id}")
        except Unusable as fault:
            tally.skip(str(fault), f"row {raw.row} of {raw.file}, column `{column}`")
            tally.check(max_skipped_share, _EARLY_ROWS)
            continue
        seen.add(key)
        num_used += 1
        yield Usable(raw.file, raw.row, raw.id, value)
    tally.check(max_skipped_share)
    if not num_used:
        why = f"all {tally.rows} rows cannot be used; the first is {tally.first}" if tally.rows else "it is empty"
        raise UserError(f"there is no {what} in {source}: {why}")


def check_text(value: object) -> str:
    """A value as text that can be stored and read.

    Raises:
        Unusable: no string, blank, not Unicode, or larger than MAX_BYTES.
    """
    if not isinstance(value, str):
        raise Unusable("not a string")
    if not value.strip():
        raise Unusable("empty text")
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        raise Unusable("lone surrogate") from None
    if size > MAX_BYTES:
        raise Unusable("larger than 10 MB")
    return value
