"""Datasets and columns as TRL has them: loaded, checked, and turned into rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_think_ext.data.reader import Reader
from rl_think_ext.data.schema import REQUIRED
from rl_think_ext.errors import UserError


def load_rows(
    name: str,
    config: str | None = None,
    streaming: bool = False,
    *,
    required: Sequence[str] = REQUIRED,
    built_by: str = "rl-think data rlp",
) -> Any:
    """The splits of a folder or hub dataset, with the columns that a method needs.

    Raises:
        UserError: nothing there, no rows, or a column missing, naming the ones that are there (F33).
    """
    from datasets import load_dataset

    if name.startswith((".", "/")) and not Path(name).exists():
        raise UserError(f"dataset_name: there is no {name}; build it with `{built_by} --output {name} …`")
    try:
        splits = load_dataset(name, name=config, streaming=streaming, cache_dir=_cache(name))
    except Exception as error:  # datasets raises many kinds
        raise UserError(f"dataset_name: cannot load {name}: {str(error).splitlines()[0]}") from error
    for split, rows in splits.items():
        columns = rows.column_names or []
        ids = {"context_ids", "target_ids"} <= set(columns)
        missing = [c for c in required if c not in columns and not (ids and c == "target")]
        if missing:
            raise UserError(f"{name}, split {split}: column `{missing[0]}` is missing; there are {', '.join(columns)}")
        if not streaming and len(rows) == 0:
            raise UserError(f"{name}, split {split}: no rows")
    return splits


def check_lengths(rows: Any, reader: Reader, positions: int | None, completion: int | None) -> None:
    """Refuse data whose longest rows have no room in the model, before any time is spent on them.

    Rows with ids are all looked at, rows of text only where they are among the longest; what slips through is
    unscorable later ("longer than the model"). A streamed dataset cannot be looked at.

    Raises:
        UserError: naming the row and the settings that would fit.
    """
    if positions is None or completion is None or not hasattr(rows, "__len__"):
        return
    if "prompt" not in rows.column_names:
        raise UserError(f"the dataset has no column `prompt`; there are {', '.join(rows.column_names)}")
    if "context_ids" in rows.column_names:
        length = [len(ids or ()) for ids in rows["context_ids"]]
    else:
        length = [len(text) if isinstance(text, str) else 0 for text in rows["prompt"]]
    for i in sorted(range(len(length)), key=length.__getitem__)[-_LOOKED_AT:]:
        row = rows[i]
        where = f"row {row.get('id', i)}"
        if not isinstance(row["prompt"], str):
            continue
        prompt = len(reader.prompt(row, reader.context(row, where), where))
        # The closing tag of a thought that was cut off, and the targets that are read (the last is not).
        targets = len(reader.target(row, where))
        extra = len(reader.tags.close) + max(targets, 1) - 1
        if prompt + completion + extra > positions:
            room = positions - completion - extra - 1
            way_out = f"`--max-context-tokens {room}` in `rl-think data rlp`" if room > 0 else "a longer model"
            raise UserError(
                f"{where}: a prompt of {prompt} tokens, max_completion_length {completion} and {extra} more do not fit "
                f"into the model's {positions} positions: lower max_completion_length, or use {way_out}"
            )


_LOOKED_AT = 64


def _cache(name: str) -> str | None:
    """A cache of its own for every state of a local folder.

    `datasets` knows a folder that has a README with `configs:` by its name and these lines, not by its files: one that
    was built anew, or another one of the same name, would silently be the old one.
    """
    folder = Path(name)
    if not folder.is_dir():
        return None
    from datasets.config import HF_DATASETS_CACHE

    state = sorted((str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    return str(Path(HF_DATASETS_CACHE) / "rl_think" / hashlib.sha256(repr(state).encode()).hexdigest()[:16])


def rows_of(prompts: Sequence[Any], columns: Mapping[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """One row per completion out of TRL's columns, each with the words that name its place.

    Raises:
        UserError: prompts that are messages: RLP predicts plain text (F32).
    """
    rows = []
    for (found, where), prompt in zip(columns_of(columns, len(prompts)), prompts, strict=True):
        row = {**found, "prompt": prompt}
        if not isinstance(prompt, str):
            raise UserError(
                f"{where}: column `prompt` holds {type(prompt).__name__}; RLP predicts plain text, not chats"
            )
        rows.append((row, where))
    return rows


def columns_of(columns: Mapping[str, Any], num: int) -> list[tuple[dict[str, Any], str]]:
    """The dataset's part of what TRL hands to a reward, row by row, each with the words that name its place."""
    lists = {name: values for name, values in columns.items() if isinstance(values, list) and len(values) == num}
    rows = [{name: values[i] for name, values in lists.items()} for i in range(num)]
    return [(row, f"row {row['id']}" if row.get("id") else f"row {i} of the batch") for i, row in enumerate(rows)]
