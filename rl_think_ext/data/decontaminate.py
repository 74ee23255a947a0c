"""Leaves out what holds a piece of a benchmark: runs of words of named benchmark files, looked up in a sorted array.

A benchmark's text of at least `ngram` words is found by any run of so many; a shorter one is found whole, and one of
fewer than `min_words` words not at all ("42" is in half of all texts): those are counted.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rl_think_ext.data.cells import Columns, raw_rows, source_name
from rl_think_ext.data.words import Hashes, gram_hashes, grams_of, word_hashes
from rl_think_ext.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}\Z")
_FILES = (".jsonl", ".parquet", ".csv", ".txt")


@dataclass(frozen=True)
class Benchmark:
    """A file that nothing may be trained on.

    Args:
        name: What the report and the card call it: letters, digits, `.`, `_`, `+`, `-`.
        path: A .jsonl, .parquet or .csv file, or a .txt with one text a line.
        columns: Which columns hold its texts, each on its own; a .txt has none.
        split: Which split, where `path` is a `datasets` name.
    """

    name: str
    path: str
    columns: tuple[str, ...] = ("question",)
    split: str = "test"

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise UserError(f"a benchmark's name is letters, digits and . _ + -, got {self.name!r}")
        columns: Any = self.columns
        if isinstance(columns, str) or not columns:
            raise UserError(f"`columns` of benchmark {self.name} is a list of names that is not empty")


@dataclass
class _Counts:
    """What was read of one benchmark."""

    texts: int = 0
    too_short: int = 0
    grams: int = 0
    sha256: str = ""


class Decontamination:
    """Says of a text which benchmark it holds a piece of; everything is compared normalised, as words.

    Files are read once, when it is made. It may be handed to worker processes: `hits` are then counted in each of
    them, and whoever collects their answers counts the names.

    Args:
        files: The benchmarks; where two hold the same run, the first is named.
        ngram: Words of a run.
        min_words: Shorter texts of a benchmark are left out.

    Raises:
        UserError: a file that is not there, cannot be read or holds no text; a column that is missing.
    """

    def __init__(self, files: Sequence[Benchmark], ngram: int = 10, min_words: int = 5) -> None:
        if not 1 <= min_words <= ngram:
            raise UserError(f"`min_words` is from 1 to `ngram`, got {min_words} and {ngram}")
        self.names = [given.name for given in files]
        if len(set(self.names)) < len(self.names):
            raise UserError(f"two benchmarks have one name: {', '.join(self.names)}")
        self.ngram, self.min_words = ngram, min_words
        self.hits: Counter[str] = Counter()
        self._counts = {given.name: _Counts() for given in files}
        openings: list[tuple[int, Hashes]] = []
        self._runs = self._read(files, openings)
        # How the short texts begin: where none of these is found, none of their lengths need be looked for.
        self._openings = _Runs(openings)

    def __call__(self, text: str) -> str | None:
        """The name of the first benchmark that the text holds a piece of; None where it is clean."""
        hashes = word_hashes(text)
        openings, runs = grams_of(hashes, (self.min_words, self.ngram))
        found = [self._runs[self.ngram].first(runs)] if self.ngram in self._runs else []
        if self._openings.first(openings) is not None:
            asked = zip(self._runs.values(), grams_of(hashes, list(self._runs)), strict=True)
            found += [known.first(runs) for known, runs in asked]
        numbers = [number for number in found if number is not None]
        if not numbers:
            return None
        name = self.names[min(numbers)]
        self.hits[name] += 1
        return name

    def report(self, hits: Counter[str] | None = None) -> list[dict[str, Any]]:
        """For each benchmark its texts, those too short to be looked for, its runs, its hash and the texts taken."""
        taken = self.hits if hits is None else hits
        return [
            {
                "benchmark": name,
                "texts": counts.texts,
                "too_short": counts.too_short,
                "runs": counts.grams,
                "sha256": counts.sha256,
                "hits": taken[name],
            }
            for name, counts in self._counts.items()
        ]

    def _read(self, files: Sequence[Benchmark], openings: list[tuple[int, Hashes]]) -> dict[int, _Runs]:
        """The runs of all benchmarks by their length in words."""
        found: defaultdict[int, list[tuple[int, Hashes]]] = defaultdict(list)
        for number, given in enumerate(files):
            counts, digest = self._counts[given.name], hashlib.sha256()
            for text in _texts(given):
                hashes = word_hashes(text)
                counts.texts += 1
                digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
                if len(hashes) < self.min_words:
                    counts.too_short += 1
                    continue
                length = min(len(hashes), self.ngram)
                if length < self.ngram:
                    openings.append((number, gram_hashes(hashes[: self.min_words], self.min_words)))
                runs = gram_hashes(hashes, length)
                counts.grams += len(runs)
                found[length].append((number, runs))
            counts.sha256 = digest.hexdigest()
            if counts.texts == counts.too_short:
                columns = ", ".join(f"`{column}`" for column in given.columns)
                raise UserError(
                    f"benchmark {given.name}: {source_name(given.path)} has no text of {self.min_words} words or more"
                    + ("" if given.path.lower().endswith(".txt") else f" in {columns}")
                )
        return {length: _Runs(found[length]) for length in sorted(found)}


class _Runs:
    """Hashes of runs of one length, sorted, and the number of the first benchmark that holds each."""

    def __init__(self, parts: Iterable[tuple[int, Hashes]]) -> None:
        parts = list(parts)
        hashes = np.concatenate([np.empty(0, dtype=np.uint64), *(runs for _, runs in parts)])
        numbers = np.repeat(np.array([n for n, _ in parts], dtype=np.uint16), [len(runs) for _, runs in parts])
        # The index of the first of equal ones, and the parts are in the order of the files.
        self.hashes, first = np.unique(hashes, return_index=True)
        self.numbers: npt.NDArray[np.uint16] = numbers[first]
        # Which low bits there are: of runs that are not known, one in sixteen at most is searched for.
        self._mask = np.uint64((1 << (16 * len(self.hashes)).bit_length()) - 1)
        self._bits = np.zeros(int(self._mask) + 1, dtype=bool)
        self._bits[self.hashes & self._mask] = True

    def first(self, asked: Hashes) -> int | None:
        """The least number of a benchmark that one of the asked runs belongs to."""
        asked = asked[self._bits[asked & self._mask]]
        if not len(asked):
            return None
        places = np.searchsorted(self.hashes, asked).clip(max=len(self.hashes) - 1)
        hit = self.hashes[places] == asked
        return int(self.numbers[places[hit]].min()) if hit.any() else None


def _texts(given: Benchmark) -> Iterator[str]:
    """All texts of a benchmark's columns that are not blank; nulls are none."""
    path = Path(given.path) if "\0" not in given.path else None
    try:
        if path and path.is_file() and path.suffix.lower() == ".txt":
            yield from filter(str.strip, path.read_text(encoding="utf-8-sig").split("\n"))
        elif path and path.is_file() and path.suffix.lower() == ".csv":
            yield from _csv_texts(path, given.columns)
        elif path and path.is_file() and path.suffix.lower() not in _FILES:
            raise UserError(f"{path.name} is no {', '.join(_FILES)} file; convert it")
        else:
            yield from _cell_texts(given)
    except UserError as error:
        raise UserError(f"benchmark {given.name}: {error}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"benchmark {given.name}: could not read {source_name(given.path)}: {error}") from error


def _cell_texts(given: Benchmark) -> Iterator[str]:
    for column in given.columns:
        for raw in raw_rows(given.path, Columns(column, split=given.split)):
            value, fault = raw.cell.value, raw.cell.fault
            # A row that is passed over would be trained on.
            if fault or not (value is None or isinstance(value, str)):
                raise UserError(
                    f"row {raw.row} of {raw.file}, column `{column}`: {fault or 'not a string'}; repair the file, or "
                    "what stands there is trained on"
                )
            if isinstance(value, str) and value.strip():
                yield value


def _csv_texts(path: Path, columns: Sequence[str]) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        rows = csv.DictReader(handle)
        there = rows.fieldnames or []
        for column in columns:
            if column not in there:
                listed = ", ".join(f"`{name}`" for name in there) or "none"
                raise UserError(f"{path.name} has no column `{column}`; there are {listed}")
        for number, row in enumerate(rows, 1):
            # An unquoted comma moves what stands behind it out of its column, out of sight.
            if None in row or any(row[column] is None for column in columns):
                raise UserError(
                    f"row {number} of {path.name} has {'more' if None in row else 'fewer'} cells than the {len(there)} "
                    "columns of its head; repair the file, or what stands there is trained on"
                )
            yield from (row[column] for column in columns if row[column].strip())
