"""The positions that are measured: rows of a built dataset as they are, or texts that the builder cuts first."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_think_ext.data.card import FILE, Card
from rl_think_ext.data.reader import Ids, Reader
from rl_think_ext.data.rlp import RLPDataConfig, build
from rl_think_ext.data.schema import REQUIRED
from rl_think_ext.errors import UserError

_TEXTS = (".txt", ".jsonl", ".parquet")
_LOOKED_AT = 16


@dataclass(frozen=True)
class Position:
    """One position of one text, read into ids.

    `start` is where the target begins in the document, in characters; `row` is the dataset's own row, unchanged, and
    `index` its number there.
    """

    index: int
    id: str
    document: str
    start: int
    prompt: Ids
    context: Ids
    target: Ids
    row: Mapping[str, Any]


class Rows(Sequence[Mapping[str, Any]]):
    """The rows of an Arrow table, made when they are asked for: a dataset may be far larger than what is measured."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.table.slice(index, 1).to_pylist()[0]

    def each(self, *columns: str) -> Iterator[dict[str, Any]]:
        """Every row, with those of these columns that there are."""
        there = [name for name in columns if name in self.table.column_names]
        for batch in self.table.select(there).to_batches(max_chunksize=1024):
            yield from batch.to_pylist()


@dataclass(frozen=True)
class Dataset:
    """The rows of every split, their card where there is one, and the name that may be shown."""

    name: str
    splits: Mapping[str, Rows]
    card: Card | None

    def rows(self, split: str) -> Rows:
        """The rows of one split.

        Raises:
            UserError: no such split, no rows, or a column that is missing.
        """
        if split not in self.splits:
            raise UserError(f"{self.name} has no split `{split}`; there are {', '.join(self.splits) or 'none'}")
        rows = self.splits[split]
        if not rows:
            raise UserError(f"{self.name}, split {split}: no rows; build it anew with `rl-think data rlp`")
        ids = {"context_ids", "target_ids"} <= rows[0].keys()
        for column in REQUIRED:
            if column not in rows[0] and not (ids and column == "target"):
                raise UserError(
                    f"{self.name}, split {split}: column `{column}` is missing; there are {', '.join(rows[0])}. Give a "
                    "folder that `rl-think data rlp` built, or a .txt, .jsonl or .parquet of texts"
                )
        return rows


def load(data: str, cutting: RLPDataConfig) -> Dataset:
    """A built folder, .parquet of its columns or a folder of them, a `datasets` name, or texts, which are cut first.

    Cut texts go to `cutting.output`.

    Raises:
        UserError: nothing there, or nothing in it that can be used.
    """
    path = Path(data)
    if path.is_dir() and (path / FILE).is_file():
        return _folder(path)
    if path.is_dir() and (files := _of_rows(path)):
        return Dataset(path.name, {file.stem: _parquet(file) for file in files}, None)
    if path.is_file() and path.suffix == ".parquet" and {"prompt", "context"} <= set(_columns(path)):
        return Dataset(path.name, {"train": _parquet(path)}, None)
    if path.is_dir() or path.suffix.lower() in _TEXTS or "://" in data:
        return _cut(cutting)
    if path.is_file():
        raise UserError(f"--data {data}: a file is one of {', '.join(_TEXTS)}, got `{path.suffix or path.name}`")
    return _hub(data, cutting)


def _of_rows(path: Path) -> list[Path]:
    """The .parquet files of a folder, one a split, if all of them hold contexts and targets."""
    files = sorted(path.glob("*.parquet"))
    return files if all({"prompt", "context"} <= set(_columns(file)) for file in files) else []


def _folder(path: Path) -> Dataset:
    card = Card.read(path)
    found = {name: path / f"{name}.parquet" for name in card.num_rows}
    return Dataset(path.name, {n: _parquet(file) for n, file in found.items() if file.is_file()}, card)


def _cut(cutting: RLPDataConfig) -> Dataset:
    build(cutting)
    made = _folder(Path(cutting.output))
    assert made.card is not None
    return Dataset(made.card.source, made.splits, made.card)


def _hub(data: str, cutting: RLPDataConfig) -> Dataset:
    """A `datasets` name: of contexts and targets, or of texts."""
    from datasets import load_dataset

    try:
        loaded = load_dataset(data, split=cutting.split)
    except Exception as error:  # datasets raises many kinds
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"there is no file or folder {data}, and `datasets` cannot load it: {cause}") from error
    if {"prompt", "context"} <= set(loaded.column_names):
        return Dataset(data, {cutting.split: Rows(loaded.with_format("arrow")[:])}, None)
    return _cut(cutting)


def _columns(path: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"could not read {path.name} as Parquet: {str(error).splitlines()[0]}") from error


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return Rows(pq.read_table(path))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"could not read {path.name} as Parquet: {str(error).splitlines()[0]}") from error


def read_positions(
    rows: Sequence[Mapping[str, Any]], reader: Reader, max_positions: int | None, seed: int
) -> list[Position]:
    """The positions of these rows, or a random `max_positions` of them, in the order of the rows.

    Raises:
        UserError: a row that cannot be read, naming it.
    """
    chosen: Sequence[int] = range(len(rows))
    if max_positions is not None and max_positions < len(rows):
        chosen = sorted(random.Random(seed).sample(chosen, max_positions))
    return [_position(i, rows[i], reader) for i in chosen]


def _position(index: int, row: Mapping[str, Any], reader: Reader) -> Position:
    name = name_of(index, row)
    where = f"row {name}"
    if not isinstance(row["prompt"], str):
        raise UserError(
            f"{where}: column `prompt` holds {type(row['prompt']).__name__}; RLP predicts plain text, not chats"
        )
    context = reader.context(row, where)
    prompt = reader.prompt(row, context, where)
    return Position(index, name, document_of(name, row), start_of(row), prompt, context, reader.target(row, where), row)


def lengths(rows: Rows) -> dict[str, int]:
    """Characters of each document up to the end of the last target that the rows hold, measured or not."""
    found: dict[str, int] = {}
    for i, row in enumerate(rows.each("id", "position", "context", "target")):
        if isinstance(row["context"], str):
            name = document_of(name_of(i, row), row)
            found[name] = max(found.get(name, 0), start_of(row) + len(row.get("target") or ""))
    return found


def name_of(index: int, row: Mapping[str, Any]) -> str:
    """A row's id, or its number where it has none."""
    return str(row["id"]) if row.get("id") is not None else f"row {index}"


def document_of(name: str, row: Mapping[str, Any]) -> str:
    """The document that a row belongs to: its id without the position that the builder puts behind it.

    >>> document_of("doc7:1234", {"position": 1234}), document_of("programs/0", {"position": 9})
    ('doc7', 'programs/0')
    """
    return name.removesuffix(f":{row['position']}") if row.get("position") is not None else name


def start_of(row: Mapping[str, Any]) -> int:
    """Where the target begins, in characters; a context that is whole says so itself, whatever `position` counts."""
    given = row.get("position")
    return max(given if isinstance(given, int) else 0, len(row["context"]))


def check_room(positions: Sequence[Position], room: int | None, max_thought_tokens: int, extra: int) -> None:
    """Refuse positions whose prompt and thought do not fit into the model, before any time is spent.

    Args:
        room: Positions that the model has; None where it does not say.
        extra: Tokens behind a thought: the closing tag and the targets that are read.

    Raises:
        UserError: naming the longest row and the settings that would fit.
    """
    longest = max(positions, key=lambda position: len(position.prompt))
    prompt = len(longest.prompt)
    if room is None or prompt + max_thought_tokens + extra <= room:
        return
    left = room - prompt - extra
    ways = [f"--max-thought-tokens {left} (the longest that fits)"] if left > 0 else []
    if room > max_thought_tokens + extra + 1:
        ways.append(f"data with shorter contexts (--max-context-tokens {room - max_thought_tokens - extra - 1})")
    raise UserError(
        f"row {longest.id}: a prompt of {prompt} tokens, a thought of {max_thought_tokens} and {extra} more do not fit "
        f"into the model's {room} positions: use {' or '.join([*ways, 'a longer model'])}"
    )


def check_tokenizer(dataset: Dataset, split: str, tokenizer: Any, model: str) -> None:
    """Refuse ids of another tokenizer: they would be scored as a text that nobody wrote.

    Where the card does not name this very tokenizer, some rows are decoded and held against their text.

    Raises:
        UserError: naming the row.
    """
    rows = dataset.rows(split)
    made = dataset.card.tokenizer if dataset.card else None
    if rows[0].get("context_ids") is None or (made and made.get("sha256") == _sha256(tokenizer)):
        return
    for row in rows[:_LOOKED_AT]:
        ids = [i for i in row["context_ids"] if isinstance(i, int) and 0 <= i < len(tokenizer)]
        if not tokenizer.decode(ids).rstrip().endswith(str(row["context"]).strip()):
            name = f" ({made['name']})" if made else ""
            raise UserError(
                f"{dataset.name}, row {row.get('id', 0)}: the ids of the context do not read as its text in the "
                f"tokenizer of {model}: it was cut with another one{name}. Build it anew with "
                f"`rl-think data rlp --tokenizer {model}`, or measure the text itself"
            )


def _sha256(tokenizer: Any) -> str | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return hashlib.sha256(backend.to_str().encode("utf-8", "surrogatepass")).hexdigest() if backend else None
