"""Replies that were paid for, kept as they come: an interrupted build goes on without asking again.

One JSON object a line, beside the output (`OUTPUT.journal`). The last line may be cut off by a kill: it is taken off.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rl_think_ext.errors import UserError

_SYNC_LINES, _SYNC_SECONDS = 16, 2.0


class Journal:
    """What was found under which key, on disk; memory holds the keys alone."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._places: dict[str, int] = {}
        self._unsynced, self._synced_at = 0, time.monotonic()
        self._load()

    @property
    def num_stored(self) -> int:
        """How many keys there are."""
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> Any:
        """What was stored under a key.

        Raises:
            KeyError: nothing was.
        """
        self._handle.seek(self._places[key])
        return json.loads(self._handle.readline())["value"]

    def put(self, key: str, value: object) -> None:
        """Store a value; it is on the disk a few lines or two seconds later, and at the end."""
        end = self._handle.seek(0, os.SEEK_END)
        self._handle.write(json.dumps({"key": key, "value": value}).encode() + b"\n")
        self._handle.flush()
        self._places[key] = end
        self._unsynced += 1
        if self._unsynced >= _SYNC_LINES or time.monotonic() - self._synced_at > _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Put what was written onto the disk."""
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._unsynced, self._synced_at = 0, time.monotonic()

    def _load(self) -> None:
        end = 0
        for line in self._handle:
            if not line.endswith(b"\n"):
                break  # cut off by a kill
            with contextlib.suppress(ValueError, TypeError, KeyError):
                entry = json.loads(line)
                if "value" in entry:
                    self._places[str(entry["key"])] = end
            end += len(line)
        self._handle.truncate(end)


def journal_path(output: str) -> Path:
    """Where the journal of an output lies."""
    target = Path(os.path.abspath(output))
    return target.with_name(f"{target.name}.journal")


@contextlib.contextmanager
def open_journal(output: str) -> Iterator[Journal]:
    """The journal of an output, held for as long as the block runs.

    Raises:
        UserError: another build holds it, or it cannot be written.
    """
    path = journal_path(output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+b")
    except OSError as error:
        raise UserError(f"could not write {path.name} beside the output: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another build is writing {path.name}: let it end, or name another output") from error
        handle.seek(0)
        journal = Journal(handle)
        try:
            yield journal
        finally:
            with contextlib.suppress(OSError):  # a full disk: put() has said so, and that is what the user has to read
                journal.sync()
            if not journal.num_stored:
                path.unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):  # it is closed all the same
            handle.close()


def key_of(**settings: object) -> str:
    """A key out of everything that decides a reply: other settings are another question."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
