"""Verdicts that are known already: the last in memory, and all of them in an SQLite file, across processes and runs.

The file grows by some 40 bytes a verdict (a million is about 40 MB) and is never pruned: delete it to begin anew. It
belongs on a local disk, for SQLite's write-ahead log does not work over a network's.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from rl_think_ext.errors import UserError

Key = bytes
APPLICATION_ID, VERSION = 0x726C7074, 1  # "rlpt", so that no other program's file is written to
SECONDS_TO_WAIT = 2.0  # for another process that writes
PATIENCE = 3  # times that it may be locked, one after another
AT_ONCE = 500  # variables of one query
T = TypeVar("T")
_log = logging.getLogger(__name__)


def verdict_key(judge: str, reference: str, prediction: str) -> Key:
    """What a verdict is kept under: 16 bytes that hold for who judges, the true text and the predicted one.

    >>> verdict_key("judge", "ab", "c") == verdict_key("judge", "a", "bc")
    False
    """
    digest = blake2b(digest_size=16)
    for text in (judge, reference, prediction):
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "big"))
        digest.update(content)
    return digest.digest()


class VerdictCache:
    """The last `size` verdicts in memory, over a file that is optional; used from any thread, after a fork or pickling.

    Raises:
        UserError: the file is another program's, damaged, or cannot be written to.
    """

    def __init__(self, size: int, file: str | None = None) -> None:
        self.size = size
        self.file = None if file is None else VerdictFile(Path(file).absolute())
        self._known: OrderedDict[Key, int] = OrderedDict()
        self._locks: dict[int, threading.Lock] = {}
        if self.file is not None:
            self.file.prepare()

    def __len__(self) -> int:
        return len(self._known)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_locks": {}}

    def look(self, keys: Iterable[Key]) -> dict[Key, int]:
        """The verdicts that are known."""
        keys = list(dict.fromkeys(keys))
        with self._lock:
            found = {key: self._known[key] for key in keys if key in self._known}
        rest = [key for key in keys if key not in found]
        if self.file is not None and rest:
            found |= self.file.look(rest)
        self._remember(found)
        return found

    def keep(self, verdicts: Mapping[Key, int]) -> None:
        """Keep verdicts; what has none is not told to anyone here, so that it is asked anew."""
        self._remember(verdicts)
        if self.file is not None and verdicts:
            self.file.keep(verdicts)

    @property
    def _lock(self) -> threading.Lock:
        # One a process: a child that is forked while another thread holds its parent's would wait for ever.
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def _remember(self, verdicts: Mapping[Key, int]) -> None:
        with self._lock:
            for key, verdict in verdicts.items():
                self._known[key] = verdict
                self._known.move_to_end(key)
            while len(self._known) > self.size:
                self._known.popitem(last=False)


class VerdictFile:
    """An SQLite file of verdicts; when it fails in a run, a warning says so and the process goes on without it.

    It is opened for each operation, a few a step: an open connection must not come through a fork.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._num_failed = 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_num_failed": 0}

    def prepare(self) -> None:
        """Make the file where there is none, and see that it is ours and can be written to.

        Raises:
            UserError: it is none of ours, or it cannot be written to.
        """
        try:
            with closing(self._connect("rwc")) as connection:
                _make(connection)
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if _locked(error):
                self._warn(error)
                return
            raise UserError(
                f"`cache_file`: {self.path} cannot be used: {error}. Name a file of its own, on a local disk, in a "
                "folder that exists and can be written to; a damaged one can be deleted, its verdicts are asked anew."
            ) from error

    def look(self, keys: Sequence[Key]) -> dict[Key, int]:
        """The verdicts of some keys, as far as they are known."""

        def read(connection: sqlite3.Connection) -> dict[Key, int]:
            found: dict[Key, int] = {}
            for start in range(0, len(keys), AT_ONCE):
                some = keys[start : start + AT_ONCE]
                marks = ",".join("?" * len(some))
                found.update(connection.execute(f"SELECT key, verdict FROM verdicts WHERE key IN ({marks})", some))
            return {key: verdict for key, verdict in found.items() if verdict in (0, 1)}

        return self._tried(read) or {}

    def keep(self, verdicts: Mapping[Key, int]) -> None:
        """Add verdicts; one that is there already stays as it is."""

        def write(connection: sqlite3.Connection) -> None:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", verdicts.items())

        self._tried(write)

    def _tried(self, act: Callable[[sqlite3.Connection], T]) -> T | None:
        if self._num_failed >= PATIENCE:
            return None
        try:
            with closing(self._connect("rw")) as connection:
                result = act(connection)
        except sqlite3.Error as error:
            self._num_failed = self._num_failed + 1 if _locked(error) else PATIENCE
            self._warn(error)
            return None
        self._num_failed = 0
        return result

    def _connect(self, mode: str) -> sqlite3.Connection:
        # A file that was deleted in the middle of a run is not made again: it would be empty.
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode={mode}", SECONDS_TO_WAIT, isolation_level=None, uri=True
        )
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    def _warn(self, error: sqlite3.Error) -> None:
        rest = "it is not used any more in this process" if self._num_failed >= PATIENCE else "it is left out this time"
        _log.warning("the judge's cache file %s: %s; %s", self.path, error, rest)


def _make(connection: sqlite3.Connection) -> None:
    """Fill a new file, or see that one is ours.

    Raises:
        sqlite3.Error: it is another program's or version's, or no database.
    """
    connection.execute("BEGIN IMMEDIATE")  # two processes may make it at the same time
    with connection:
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={VERSION}")
            columns = "key BLOB PRIMARY KEY, verdict INTEGER NOT NULL"
            connection.execute(f"CREATE TABLE verdicts ({columns}) WITHOUT ROWID")
        found = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if found != [APPLICATION_ID, VERSION]:
            raise sqlite3.DatabaseError("it is another program's, or another version's")
    connection.execute("PRAGMA journal_mode=WAL")


def _locked(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
