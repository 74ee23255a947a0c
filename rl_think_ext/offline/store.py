"""The folder of a measurement: its settings, samples in parts that are whole or not there, and one table at the end."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_think_ext.errors import UserError

SETTINGS, SAMPLES, PARTS = "settings.json", "samples.parquet", "parts"
_OURS = (SETTINGS, SAMPLES, PARTS, "gain.json", "gain.png", "compare")


class Store:
    """Samples of one model on one text, in a folder that knows what was asked.

    Args:
        folder: Made when it is not there.
        settings: Whatever decides the samples; JSON values.
        overwrite: Throw away a measurement with other settings.

    Raises:
        UserError: a folder that cannot be written to, that holds something else, or other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(dict(settings)))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._take(overwrite)
            (folder / PARTS).mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --output") from error

    def _take(self, overwrite: bool) -> None:
        path = self.folder / SETTINGS
        if path.is_file():
            found = _read(path)
            if found == self.settings:
                return
            if not overwrite:
                raise UserError(_difference(self.folder, found, self.settings))
            self._clear()
        elif any(name for name in os.listdir(self.folder) if name not in ("data", PARTS)):
            raise UserError(f"{self.folder} holds files, but no measurement: name a new folder with --output")
        write_whole(path, (json.dumps(self.settings, indent=2) + "\n").encode())

    def _clear(self) -> None:
        for name in _OURS:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def has(self, part: int) -> bool:
        """Whether a part is there and can be read, or the whole table is."""
        return self.is_finished or _is_whole(self._part(part))

    @property
    def is_finished(self) -> bool:
        """Whether all samples are there."""
        return (self.folder / SAMPLES).is_file()

    def write(self, part: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep the samples of one part."""
        import pyarrow as pa

        write_table(self._part(part), pa.Table.from_pylist(list(rows), schema=schema()))

    def read(self, part: int) -> list[dict[str, Any]]:
        """The samples of one part."""
        import pyarrow.parquet as pq

        return list(pq.read_table(self._part(part)).to_pylist())

    def finish(self, num_parts: int) -> None:
        """Join the parts into one table, in the order of the data."""
        import pyarrow as pa

        if self.is_finished:
            return
        table = pa.concat_tables([_table(self._part(i)) for i in range(num_parts)])
        write_table(self.folder / SAMPLES, table.sort_by([("row", "ascending"), ("sample", "ascending")]))
        shutil.rmtree(self.folder / PARTS)

    def columns(self, *names: str) -> dict[str, list[Any]]:
        """Columns of the finished table.

        Raises:
            UserError: a table that cannot be read.
        """
        return dict(_table(self.folder / SAMPLES, list(names)).to_pydict())

    def _part(self, part: int) -> Path:
        return self.folder / PARTS / f"{part:06d}.parquet"


def schema() -> Any:
    """The columns of a sample: what was read and said, in text and ids, and its numbers, None where there is none."""
    import pyarrow as pa

    ids = pa.list_(pa.int32())
    numbers = ("reasoned", "baseline", "gain", "accuracy", "baseline_accuracy", "length")
    return pa.schema(
        [
            *(("row", pa.int64()), ("id", pa.string()), ("document", pa.string()), ("position", pa.int64())),
            *(("context", pa.string()), ("target", pa.string()), ("sample", pa.int32()), ("thought", pa.string())),
            *((name, ids) for name in ("thought_ids", "prompt_ids", "context_ids", "target_ids")),
            *((name, pa.float64()) for name in numbers),
            *(("unclosed", pa.bool_()), ("unscorable", pa.string()), ("noise", pa.float64())),
        ]
    )


def _is_whole(path: Path) -> bool:
    """Whether there is a Parquet file; its footer stands at the end, so that a cut or empty file has none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return False
    return True


def _table(path: Path, columns: list[str] | None = None) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} cannot be read: {str(error).splitlines()[0]}; delete it, and the same command samples it again"
        ) from error


def write_table(path: Path, table: Any) -> None:
    """A Parquet file under its final name only when it is whole."""
    import pyarrow.parquet as pq

    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table, partial, compression="zstd")
    _publish(partial, path)


def write_whole(path: Path, content: bytes) -> None:
    """A file under its final name only when it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    _publish(partial, path)


def _publish(partial: Path, path: Path) -> None:
    handle = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(partial, path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: name another --output, or delete that folder") from error


def _difference(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    name = next(key for key in {**wanted, **found} if found.get(key) != wanted.get(key))
    return (
        f"{folder} holds a measurement with `{name}` {_short(found.get(name))}, and now it is "
        f"{_short(wanted.get(name))}: name another --output, or pass --overwrite to measure anew"
    )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
