"""Documents out of text files, JSON lines, Parquet, folders of these, or a `datasets` name, one at a time.

Nothing is unpickled and no code of a repository runs. A row that cannot be used is left out and counted by reason;
too many of them, or a column that is not there, is an error that names the file, the row and the column.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from rl_think_ext.errors import UserError

MAX_BYTES = 10_000_000
SUFFIXES = (".txt", ".jsonl", ".parquet")
SAFE_BUILDERS = ("arrow", "csv", "json", "parquet", "text")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?\Z")
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


@dataclass(frozen=True)
class Columns:
    """Where the text and the id of a row stand, and which split of a `datasets` name is read."""

    text: str = "text"
    id: str = "id"
    split: str = "train"


class _Raw(NamedTuple):
    file: str
    row: int
    id: str
    value: object
    fault: str = ""


def read_documents(
    source: str,
    columns: Columns = Columns(),
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
    tally = Tally() if tally is None else tally
    seen: set[bytes] = set()
    num_documents = 0
    for raw in _rows(source, columns):
        tally.rows += 1
        key = hashlib.blake2b(raw.id.encode(), digest_size=8).digest()
        reason = raw.fault or _fault(raw.value)
        column = columns.text
        if not reason and key in seen:
            reason, column = f"duplicate {columns.id}", columns.id
        if reason:
            tally.skip(reason, f"row {raw.row} of {raw.file}, column `{column}`")
            tally.check(max_skipped_share, _EARLY_ROWS)
            continue
        seen.add(key)
        num_documents += 1
        yield Document(raw.id, str(raw.value), raw.file)
    tally.check(max_skipped_share)
    if not num_documents:
        why = f"all {tally.rows} rows cannot be used; the first is {tally.first}" if tally.rows else "it is empty"
        raise UserError(f"there is no document in {source}: {why}")


def source_name(source: str) -> str:
    """What a card may say about a source: the last part of a path, or the name of a dataset."""
    path = Path(source)
    return printable(Path(os.path.abspath(path)).name) if path.exists() else source


def printable(name: str) -> str:
    """A file name as text that can be stored, whatever bytes it was made of."""
    return name.encode("utf-8", "backslashreplace").decode()


def _fault(value: object) -> str:
    if not isinstance(value, str):
        return "not a string"
    if not value.strip():
        return "empty text"
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        return "lone surrogate"
    return "larger than 10 MB" if size > MAX_BYTES else ""


def _rows(source: str, columns: Columns) -> Iterator[_Raw]:
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


def _folder_rows(folder: Path, columns: Columns) -> Iterator[_Raw]:
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


def _file_rows(path: Path, name: str, prefix: str, columns: Columns) -> Iterator[_Raw]:
    readers = {".txt": _txt_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{name} is no {', '.join(SUFFIXES)} file; rename or convert it")
    try:
        for row, (id_, value, fault) in enumerate(reader(path, name, columns), start=1):
            numbered = name if reader is _txt_rows else f"{name}:{row}"
            yield _Raw(name, row, f"{prefix}{id_}" if id_ else numbered, value, fault)
    except OSError as error:
        raise UserError(f"could not read {name}: {error.strerror or error}") from error


_Fields = tuple[str, object, str]


def _txt_rows(path: Path, name: str, columns: Columns) -> Iterator[_Fields]:
    with path.open("rb") as handle:
        data = handle.read(MAX_BYTES + 1)
    if not data:
        return
    if len(data) > MAX_BYTES:
        yield "", None, "larger than 10 MB"
        return
    try:
        yield "", data.decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        yield "", None, "not UTF-8"


def _jsonl_rows(path: Path, name: str, columns: Columns) -> Iterator[_Fields]:
    known = False
    with path.open("rb") as handle:
        for row, line in enumerate(_lines(handle), start=1):
            if line is None:
                yield "", None, "larger than 10 MB"
                continue
            try:
                record = json.loads(line.decode("utf-8-sig" if row == 1 else "utf-8"))
            except (ValueError, RecursionError):
                yield "", None, "corrupt row"
                continue
            if not isinstance(record, dict):
                yield "", None, "no JSON object"
            elif columns.text in record:
                known = True
                yield _id(record.get(columns.id)), record[columns.text], ""
            elif known:
                yield "", None, "column missing"
            else:
                raise _missing(name, row, columns.text, record)


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


def _parquet_rows(path: Path, name: str, columns: Columns) -> Iterator[_Fields]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _check_type(file.schema_arrow, name, columns.text)
            wanted = [c for c in (columns.text, columns.id) if c in file.schema_arrow.names]
            # Few rows at a time: a row may hold 10 MB.
            for batch in file.iter_batches(batch_size=64, columns=wanted):
                for index in range(batch.num_rows):
                    yield _scalars(batch, index, columns)
    except pa.ArrowException as error:
        raise UserError(f"could not read {name} as Parquet: {str(error).splitlines()[0]}") from error


def _check_type(schema: Any, name: str, column: str) -> None:
    import pyarrow.types as types

    if column not in schema.names:
        raise _missing(name, 1, column, schema.names)
    kind = schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise UserError(f"column `{column}` of {name} holds {kind}, from row 1 on; expected text")


def _scalars(batch: Any, index: int, columns: Columns) -> _Fields:
    try:
        value = batch.column(columns.text)[index].as_py()
        own = batch.column(columns.id)[index].as_py() if columns.id in batch.schema.names else None
    except UnicodeDecodeError:
        return "", None, "not UTF-8"
    return _id(own), value, ""


def _dataset_rows(name: str, columns: Columns) -> Iterator[_Raw]:
    shown = source_name(name)
    try:
        rows = _open_dataset(name, columns.split)
        for row, record in enumerate(rows, start=1):
            if columns.text not in record:
                raise _missing(shown, row, columns.text, record)
            own = _id(record.get(columns.id)) or f"{columns.split}:{row}"
            yield _Raw(shown, row, own, record[columns.text])
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
    return text if len(text) <= 500 and text == printable(text) else ""


def _missing(file: str, row: int, column: str, there: Iterable[str]) -> UserError:
    names = [printable(str(name)) for name in there]
    near = get_close_matches(column, names, 1)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    listed = ", ".join(f"`{name}`" for name in names[:20]) or "none"
    return UserError(f"row {row} of {file} has no column `{column}`; there are {listed}.{hint}")
