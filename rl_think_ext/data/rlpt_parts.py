"""What is done of an interrupted build, in a hidden folder beside the output: rows and counts of some documents each.

A part bears a key made of the settings and of every document up to its end. What is found under the key that is asked
for is what would be made; anything else is not looked at. So a build goes on, and never with rows of another one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import process_time
from typing import Any

from rl_think_ext.data.card import beside, hold
from rl_think_ext.data.rlpt_report import Report
from rl_think_ext.data.segment_rows import SegmentRow, schema
from rl_think_ext.data.sources import Document
from rl_think_ext.errors import UserError

_ROWS, _CHARS = 512, 4_000_000  # of a batch, at most about


class Parts:
    """The parts in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """What the names of a part's files begin with."""
        return self.folder / key

    def has(self, key: str) -> bool:
        """Whether a part is there, and whole."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            sizes = self.report(key).sizes
            return all(rows_file(self.path(key), split).stat().st_size == size for split, size in sizes.items())
        return False

    def forget(self) -> None:
        """Remove all parts: what they make is of no use."""
        for file in self.folder.iterdir():
            file.unlink()

    def report(self, key: str) -> Report:
        """The counts of a part that is there."""
        return Report.of(json.loads(self.path(key).with_suffix(".json").read_text(encoding="utf-8")))


def rows_file(path: Path, split: str) -> Path:
    """Where a part's rows of a split are."""
    return path.with_suffix(f".{split}.arrow")


def save(path: Path, value: Any) -> None:
    """Write JSON that is there whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value), encoding="utf-8")
    os.replace(partial, path)


def save_signatures(path: Path, found: Sequence[bytes]) -> None:
    """Keep what the duplicates among a part's documents are known by."""
    save(path.with_suffix(".signatures"), [signature.hex() for signature in found])


def read_signatures(path: Path) -> list[bytes] | None:
    """What was kept; None where there is nothing that can be read."""
    with suppress(OSError, ValueError, TypeError):
        found = json.loads(path.with_suffix(".signatures").read_text(encoding="utf-8"))
        return [bytes.fromhex(signature) for signature in found]
    return None


class RowFile:
    """Rows of one split of a part, in Arrow's stream format, each with its sha256; a context manager.

    The file begins with the first row. Memory holds some hundred rows, whatever a document is cut into.
    """

    def __init__(self, path: Path, split: str, form: str) -> None:
        self.path, self.split, self.form = rows_file(path, split), split, form
        self.num_rows, self.seconds = 0, 0.0
        self._rows: list[SegmentRow] = []
        self._chars = 0
        self._file: Any = None
        self._open = ExitStack()

    def __enter__(self) -> RowFile:
        self.path.unlink(missing_ok=True)  # of a build that was killed
        return self

    def __exit__(self, *raised: object) -> None:
        self._open.close()

    def add(self, row: SegmentRow) -> None:
        """Take one row in."""
        self._rows.append(row)
        self.num_rows += 1
        self._chars += 2 * len(row["context"])
        if len(self._rows) >= _ROWS or self._chars >= _CHARS:
            self._flush()

    def close(self) -> int:
        """Write the rest; the size of the file, or 0 where there was no row."""
        self._flush()
        self._open.close()
        return self.path.stat().st_size if self.num_rows else 0

    def _flush(self) -> None:
        start = process_time()
        if self._rows:
            batch = _batch(self._rows, self.split, self.form)
            if self._file is None:
                self._file = self._start(batch.schema)
            self._file.write_batch(batch)
        self._rows, self._chars = [], 0
        self.seconds += process_time() - start

    def _start(self, schema: Any) -> Any:
        import pyarrow as pa

        options = pa.ipc.IpcWriteOptions(compression="lz4")  # contexts of one document are mostly the same text
        sink = self._open.enter_context(pa.OSFile(str(self.path), "wb"))
        return self._open.enter_context(pa.ipc.new_stream(sink, schema, options=options))


def _batch(rows: Sequence[SegmentRow], split: str, form: str) -> Any:
    import pyarrow as pa

    columns, values = schema(form), {name: [row[name] for row in rows] for name in SegmentRow.__annotations__}  # type: ignore[literal-required]
    arrays = [pa.array(values[field.name], type=field.type) for field in columns if field.name != "prompt"]
    texts = pa.array([text_of(row["prompt"]) for row in rows], type=pa.string())
    arrays.insert(1, texts if form == "text" else _chats(texts, columns.field("prompt").type))
    digests = pa.array([row_digest(split, row) for row in rows], type=pa.binary(32))
    return pa.record_batch([*arrays, digests], schema=columns.append(pa.field("digest", pa.binary(32))))


def _chats(texts: Any, kind: Any) -> Any:
    """Chats of one message of the user; made of dicts they take four times as long."""
    import pyarrow as pa

    roles = pa.array(["user"] * len(texts), type=pa.string())
    messages = pa.StructArray.from_arrays([roles, texts], fields=list(kind.value_type))
    return pa.ListArray.from_arrays(pa.array(range(len(texts) + 1), type=pa.int32()), messages, type=kind)


def text_of(prompt: list[dict[str, str]] | str) -> str:
    """What a prompt says, be it a chat of one message or a text."""
    return prompt if isinstance(prompt, str) else prompt[0]["content"]


def row_digest(split: str, row: SegmentRow) -> bytes:
    """sha256 of a row: its texts behind their lengths, so that no two rows give the same bytes."""
    prompt, numbers = text_of(row["prompt"]), f"{row['position']} {row['segment_ends']}"
    asked = (split, row["id"], prompt, row["task"], row["context"], row["next_segment"])
    texts = (*asked, row["reference"], row["source"])
    lengths = ",".join(map(str, map(len, texts)))
    return hashlib.sha256(f"{lengths};{''.join(texts)}{numbers}".encode()).digest()


def next_key(key: str, documents: Sequence[Document]) -> str:
    """The key of a part, out of that of the part before it and of its documents."""
    digest = hashlib.sha256(key.encode())
    for document in documents:
        for text in (document.id, document.source, document.text):
            data = text.encode()
            digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:32]


@contextmanager
def open_parts(output: str, key: str) -> Iterator[Parts]:
    """The parts of a build with the settings of this key; those of other settings are removed.

    The folder goes when the block ends well. It stays when the block raises and a part is whole.

    Raises:
        UserError: another build is at work, or the place cannot be written to.
    """
    target = Path(os.path.abspath(output))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = target.with_name(f".{target.name}.parts-{key[:16]}")
        for other in beside(target, "parts"):
            if other != folder:
                handle = _held(other, output)
                shutil.rmtree(other)
                os.close(handle)
        folder.mkdir(exist_ok=True)
        handle = _held(folder, output)
    except OSError as error:
        raise UserError(f"could not write beside {output}: {error.strerror or error}") from error
    try:
        yield Parts(folder)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        if folder.exists() and not any(folder.glob("*.json")):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _held(folder: Path, output: str) -> int:
    try:
        return hold(folder)
    except OSError as error:
        raise UserError(f"another build of {output} is at work: let it end, or name another output") from error


def merge(parts: Parts, keys: Sequence[str], split: str, path: Path, schema: Any) -> tuple[int, bytes]:
    """Write all rows of a split into one Parquet file; their number, and the sha256 over their digests.

    Raises:
        UserError: a part that cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    digest, number = hashlib.sha256(), 0
    dictionary = ["task", "source"]
    waiting: list[Any] = []
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=dictionary, write_statistics=False) as file:
        for batch in _batches(parts, keys, split):
            digest.update(b"".join(batch.column("digest").to_pylist()))
            waiting.append(batch.drop_columns(["digest"]))
            number += batch.num_rows
            if sum(one.num_rows for one in waiting) >= _ROWS:
                file.write_table(pa.Table.from_batches(waiting, schema=schema))
                waiting = []
        if waiting:  # `datasets` cannot read a row group of no rows
            file.write_table(pa.Table.from_batches(waiting, schema=schema))
    if not number:  # nor a split of none
        path.unlink()
    return number, digest.digest()


def _batches(parts: Parts, keys: Sequence[str], split: str) -> Iterator[Any]:
    import pyarrow as pa

    for key in keys:
        file = rows_file(parts.path(key), split)
        if file.exists():
            try:
                with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as stream:
                    yield from stream
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"{file} cannot be read ({error}): remove its folder and build again") from error
