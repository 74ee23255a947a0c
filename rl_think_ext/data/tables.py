"""Rows of RLMT's datasets as Parquet, with their hash; the columns of each builder stand here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_think_ext.data.card import ContentHash

_ROWS_PER_GROUP = 512
# Columns by name: "text", "chat", "int", "float".
PROMPTS = {"id": "text", "prompt": "chat", "source": "text", "num_tokens": "int"}
RENDERED = {"id": "text", "prompt": "text", "messages": "chat", "source": "text", "num_tokens": "int"}
SFT = {"id": "text", "prompt": "chat", "thought": "text", "answer": "text", "source": "text", "num_tokens": "int"}
PAIRS = {
    "id": "text",
    "prompt": "chat",
    "chosen": "chat",
    "rejected": "chat",
    "chosen_score": "float",
    "rejected_score": "float",
    "num_parsed": "int",
    "source": "text",
    "num_tokens": "int",
}


def write_rows(
    folder: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]], columns: Mapping[str, str]
) -> tuple[dict[str, int], str]:
    """One Parquet file for each split that has rows; the number of rows by split, and the sha256 over all of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    chat = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    types = {"text": pa.string(), "chat": chat, "int": pa.int64(), "float": pa.float64()}
    schema, digest = pa.schema([(name, types[kind]) for name, kind in columns.items()]), ContentHash()
    for name, rows in splits.items():
        for row in rows:
            digest.add(name, row)
        if rows:  # `datasets` cannot read a split of none
            table = pa.Table.from_pylist(list(rows), schema=schema)
            pq.write_table(table, folder / f"{name}.parquet", row_group_size=_ROWS_PER_GROUP)
    return {name: len(rows) for name, rows in splits.items()}, digest.hexdigest()


def on_test_side(key: str, test_share: float) -> bool:
    """Whether a prompt belongs to the test split, by its key alone: no other build moves it to the training side."""
    digest = hashlib.sha256(f"split\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < test_share * 2**64


def chat(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Messages with their two keys in one order, as they are stored."""
    return [{"role": message["role"], "content": message["content"]} for message in messages]
