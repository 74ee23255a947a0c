"""The rows of a source as they lie there: text files, JSON lines, Parquet, folders of these, or a `datasets` name.

Nothing is unpickled and no code of a repository runs. What cannot be read becomes a fault in the row's place.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from rl_think_ext.errors import UserError, redact

MAX_BYTES = 10_000_000
SUFFIXES = (".txt", ".jsonl", ".parquet")
SAFE_BUILDERS = ("arrow", "csv", "json", "parquet", "text")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?\Z")


@dataclass(frozen=True)
class Columns:
    """Where the text and the id of a row stand, and which split of a `datasets` name is read.

    `also` are names to look for where a file has no column `text`; with `chat` a column may hold lists of messages.
    """

    text: str = "text"
    id: str = "id"
    split: str = "train"
    also: tuple[str, ...] = ()
    chat: bool = False

    def among(self, names: Iterable[str]) -> str | None:
        """The first of the columns that is there."""
        there = set(names)
        return next((name for name in (self.text, *self.also) if name in there), None)


class Cell(NamedTuple):
    """One value, the column it stands in, the row's own id or nothing, and what is wrong with it."""

    column: str
    id: str
    value: object
    fault: str = ""


class Raw(NamedTuple):
    """A cell with its place: the file, the row counted from 1, and an id that is never empty."""

    file: str
    row: int
    id: str
    cell: Cell


def source_name(source: str) -> str:
    """What a card may say about a source: the last part of a path, or the name of a dataset."""
    path = Path(source)
    return printable(Path(os.path.abspath(path)).name) if path.exists() else redact(source)


def printable(name: str) -> str:
    """A file name as text that can be stored, whatever bytes it was made of."""
    return name.encode("utf-8", "backslashreplace").decode()


def storable(text: str) -> bool:
    """Whether a text can be written to a file: whatever holds half of a surrogate pair cannot."""
    return text == printable(text)


def raw_rows(source: str, columns: Columns) -> Iterator[Raw]:
    """Every row of a file, a folder or a `datasets` name, usable or not.

    Raises:
        UserError: nothing there that can be read, or a column missing or of the wrong type.
    """
    if "://" in source:
        # The address is not repeated: it may hold a password (F39).
        raise UserError("input is a file, a folder or a `datasets` name, not an address; download it first")
    if "\0" in source or not 0 < len(source) < 4096:
        raise UserError("input is empty, too long or holds a NUL character; expected a file, folder or `datasets` name")
    path = Path(source)
    if path.is_dir():
        yield from _folder_rows(path, columns)
    elif path.is_file():
        yield from _file_rows(path, printable(path.name), "", columns)
    elif ".." in path.parts or not _NAME.match(source) or path.suffix.lower() in SUFFIXES:
        raise UserError(f"there is no file or folder {source} (looked from {Path.cwd()}), and it is no `datasets` name")
    else:
        yield from _dataset_rows(source, columns)


def _folder_rows(folder: Path, columns: Columns) -> Iterator[Raw]:
    files = sorted(
        Path(parent, name)
        for parent, folders, names in os.walk(folder)
        if not any(part.startswith(".") for part in Path(parent).relative_to(folder).parts)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    )
    if not files:
        yield from _dataset_rows(str(folder), columns)
    for file in files:
        name = printable(file.relative_to(folder).as_posix())
        yield from _file_rows(file, name, f"{name}:", columns)


def _file_rows(path: Path, name: str, prefix: str, columns: Columns) -> Iterator[Raw]:
    readers = {".txt": _txt_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{name} is no {', '.join(SUFFIXES)} file; rename or convert it")
    try:
        for row, cell in enumerate(reader(path, name, columns), start=1):
            numbered = name if reader is _txt_rows else f"{name}:{row}"
            yield Raw(name, row, f"{prefix}{cell.id}" if cell.id else numbered, cell)
    except OSError as error:
        raise UserError(f"could not read {name}: {error.strerror or error}") from error


def _txt_rows(path: Path, name: str, columns: Columns) -> Iterator[Cell]:
    with path.open("rb") as handle:
        data = handle.read(MAX_BYTES + 1)
    if not data:
        return
    if len(data) > MAX_BYTES:
        yield Cell(columns.text, "", None, "larger than 10 MB")
        return
    try:
        yield Cell(columns.text, "", data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        yield Cell(columns.text, "", None, "not UTF-8")


def _jsonl_rows(path: Path, name: str, columns: Columns) -> Iterator[Cell]:
    column = None
    with path.open("rb") as handle:
        for row, line in enumerate(_lines(handle), start=1):
            record, fault = _record(line, first=row == 1)
            if fault:
                yield Cell(column or columns.text, "", None, fault)
                continue
            column = column or columns.among(record)
            if not column:
                raise _missing(name, row, columns, record)
            fault = "" if column in record else "column missing"
            yield Cell(column, _id(record.get(columns.id)), record.get(column), fault)


def _record(line: bytes | None, *, first: bool) -> tuple[dict[str, Any], str]:
    """The JSON object of a line, or what is wrong with it."""
    if line is None:
        return {}, "larger than 10 MB"
    try:
        record = json.loads(line.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError:
        return {}, "not UTF-8"
    except (ValueError, RecursionError):
        return {}, "corrupt row"
    return (record, "") if isinstance(record, dict) else ({}, "no JSON object")


def _lines(handle: BinaryIO) -> Iterator[bytes | None]:
    """Lines that are not blank, and None for one that is too long to be read (four times a document)."""
    limit = 4 * MAX_BYTES
    while line := handle.readline(limit):
        if len(line) < limit or line.endswith(b"\n"):
            if line.strip():
                yield line
            continue
        while line and not line.endswith(b"\n"):
            line = handle.readline(1 << 20)
        yield None


def _parquet_rows(path: Path, name: str, columns: Columns) -> Iterator[Cell]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            column = _check_type(file.schema_arrow, name, columns)
            wanted = [c for c in (column, columns.id) if c in file.schema_arrow.names]
            # Few rows at a time: a row may hold 10 MB.
            for batch in file.iter_batches(batch_size=64, columns=wanted):
                for index in range(batch.num_rows):
                    yield _scalars(batch, index, column, columns.id)
    except pa.ArrowException as error:
        raise UserError(f"could not read {name} as Parquet: {str(error).splitlines()[0]}") from error


def _check_type(schema: Any, name: str, columns: Columns) -> str:
    """The column to be read, once it is known to hold what it should."""
    import pyarrow.types as types

    column = columns.among(schema.names)
    if column is None:
        raise _missing(name, 1, columns, schema.names)
    kind = schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    if not text and not (columns.chat and _is_chat(kind)):
        expected = "text, or lists of messages with `role` and `content`" if columns.chat else "text"
        raise UserError(f"column `{column}` of {name} holds {kind}, from row 1 on; expected {expected}")
    return column


def _is_chat(kind: Any) -> bool:
    import pyarrow.types as types

    if not (types.is_list(kind) or types.is_large_list(kind)) or not types.is_struct(kind.value_type):
        return False
    return {"role", "content"} <= {kind.value_type.field(i).name for i in range(kind.value_type.num_fields)}


def _scalars(batch: Any, index: int, column: str, id_column: str) -> Cell:
    try:
        value = batch.column(column)[index].as_py()
        own = batch.column(id_column)[index].as_py() if id_column in batch.schema.names else None
    except UnicodeDecodeError:
        return Cell(column, "", None, "not UTF-8")
    return Cell(column, _id(own), value)


def _dataset_rows(name: str, columns: Columns) -> Iterator[Raw]:
    shown = source_name(name)
    column = ""
    try:
        rows = _open_dataset(name, columns.split)
        for row, record in enumerate(rows, start=1):
            column = column or columns.among(record) or columns.text
            if column not in record:
                raise _missing(shown, row, columns, record)
            own = _id(record.get(columns.id)) or f"{columns.split}:{row}"
            yield Raw(shown, row, own, Cell(column, own, record[column]))
    except UserError:
        raise
    except GeneratorExit:
        raise
    except Exception as error:  # the hub and its file systems raise dozens of types
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"could not read `{shown}`, split `{columns.split}`, with datasets: {cause}") from error


def _open_dataset(name: str, split: str) -> Iterable[Mapping[str, Any]]:
    from datasets import DatasetDict, load_dataset_builder, load_from_disk

    if Path(name, "dataset_dict.json").is_file() or Path(name, "state.json").is_file():
        loaded = load_from_disk(name)
        return loaded[split] if isinstance(loaded, DatasetDict) else loaded
    if Path(name).is_dir() and not any(p.is_file() for p in Path(name).rglob("*")):
        raise UserError(f"the folder {source_name(name)} is empty; expected {', '.join(SUFFIXES)} files")
    builder = load_dataset_builder(name)
    # Text formats only: no loader that could run code of the repository (F38).
    kind = type(builder).__module__.rsplit(".", 1)[-1]
    if not type(builder).__module__.startswith("datasets.packaged_modules.") or kind not in SAFE_BUILDERS:
        raise UserError(f"`{source_name(name)}` needs the loader {kind}; only {', '.join(SAFE_BUILDERS)} are used here")
    return builder.as_streaming_dataset(split=split)


def _id(value: object) -> str:
    """A given id as text; nothing where it is missing, too long to be one, or cannot be stored."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return ""
    text = str(value) if isinstance(value, str) or abs(value) < 1 << 64 else ""
    return text if len(text) <= 500 and storable(text) else ""


def _missing(file: str, row: int, columns: Columns, there: Iterable[str]) -> UserError:
    names = [printable(str(name)) for name in there]
    asked = " or ".join(f"`{name}`" for name in (columns.text, *columns.also))
    near = [close for name in (columns.text, *columns.also) for close in get_close_matches(name, names, 1)]
    hint = f" Did you mean `{near[0]}`?" if near else ""
    listed = ", ".join(f"`{name}`" for name in names[:20]) or "none"
    return UserError(f"row {row} of {file} has no column {asked}; there are {listed}.{hint}")
