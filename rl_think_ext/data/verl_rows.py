"""Write a built dataset in the columns that verl's own dataset class reads.

    rl-think data verl --input data/rlp --output data/rlp-verl

The door's own classes (`rl_think_ext.verl.RLPDataset`, `RLMTDataset`, `RLPTDataset`) read the folders of the builders
as they are, and these, too. This form is for verl's stock `RLHFDataset`, and for rewards and tools that were written
for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_think_ext import __version__
from rl_think_ext.data.card import Card, ContentHash, keep_apart, versions, whole_folder
from rl_think_ext.data.cells import source_name
from rl_think_ext.data.prompts import built_splits
from rl_think_ext.data.tables import chat
from rl_think_ext.errors import UserError

_BATCH = 256
_ABILITY = {"rlp": "prediction", "rlmt": "chat", "rlpt": "prediction"}


@dataclass(frozen=True, kw_only=True)
class VerlDataConfig:
    """Write the rows of a dataset that `rl-think data` built in verl's own form, one Parquet file for each split.

    Columns: data_source, prompt (a chat), ability, reward_model (style, ground_truth), extra_info (index, id, split),
    and the columns of the dataset beside them. Of RLP the prompt is one user message that holds the text to go on
    from, and ground_truth is the target; of RLMT the prompt is the chat, and ground_truth is empty: nothing is right;
    of RLPT the prompt is the chat, or the text that a base model goes on, and ground_truth is the reference.

    Args:
        input: A folder that `rl-think data rlp`, `rlmt` or `rlpt` built. All its splits are written.
        output: The folder that is made. It appears only when everything is in it.
        data_source: The name under which verl averages validation scores; without it rlp, rlmt or rlpt.
        overwrite: Replace a dataset that an earlier build left in `output`.
    """

    input: str
    output: str
    data_source: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.data_source is not None and not self.data_source.strip():
            raise UserError("`data_source` is empty; leave it out, or give the name that verl's metrics shall bear")


def build(config: VerlDataConfig) -> Card:
    """Write every split, card.json and README.md into `config.output`, whole or not at all.

    The card is that of the input, with the number and the hash of the rows that were written, and where they came from.

    Raises:
        UserError: no folder of `rl-think data` for RLP, RLMT or RLPT, rows that are not those of its card, or an output
            that cannot be used.
    """
    keep_apart(config.input, config.output)
    card, found = Card.read(config.input), built_splits(config.input)
    splits = {name: found[name] for name in [*card.num_rows, *found] if name in found}
    if card.method not in _ABILITY:
        raise UserError(f"{config.input} holds rows of {card.method}; verl trains {', '.join(_ABILITY)} from these")
    with whole_folder(config.output, overwrite=config.overwrite) as folder:
        num_rows, digest = _write(config, card, splits, folder)
        if num_rows != {name: number for name, number in card.num_rows.items() if number}:
            raise UserError(
                f"{config.input}: its card says {dict(card.num_rows)} rows, there are {num_rows}: build it anew"
            )
        written = _card(config, card, num_rows, digest)
        written.write(folder)
    return written


def _card(config: VerlDataConfig, card: Card, num_rows: Mapping[str, int], digest: str) -> Card:
    made_of = {"input": source_name(config.input), "content_hash": card.content_hash}
    return dataclasses.replace(
        card,
        num_rows=num_rows,
        content_hash=digest,
        settings={**card.settings, "verl": {**made_of, "data_source": config.data_source or card.method}},
        versions={**card.versions, "rl_think_ext": __version__, **versions("pyarrow")},
    )


def _write(config: VerlDataConfig, card: Card, splits: Mapping[str, Path], folder: Path) -> tuple[dict[str, int], str]:
    """Stream all splits from file to file; rows by split, and the sha256 over all of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    digest, num_rows = ContentHash(), {}
    for split, path in splits.items():
        number = 0
        with ExitStack() as stack:
            source = stack.enter_context(_opened(path, config.input))
            schema = _schema(source.schema_arrow, card.method)
            target = stack.enter_context(pq.ParquetWriter(folder / f"{split}.parquet", schema))
            for batch in source.iter_batches(_BATCH):
                rows = list(_rows(batch.to_pylist(), number, split, card.method, config))
                for row in rows:
                    digest.add(split, row)
                target.write_table(pa.Table.from_pylist(rows, schema=schema))
                number += len(rows)
        num_rows[split] = number
    return num_rows, digest.hexdigest()


def _opened(path: Path, folder: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"could not read {path.name} of {folder}: {str(error).splitlines()[0]}") from error


def _rows(
    rows: list[dict[str, Any]], start: int, split: str, method: str, config: VerlDataConfig
) -> Iterator[dict[str, Any]]:
    for index, row in enumerate(rows, start=start):
        # A rendered prompt is the text of a frame: beside it stands the chat that is asked.
        asked = row.get("messages") or row["prompt"]
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else chat(asked)
        own = {name: value for name, value in row.items() if name not in ("prompt", "messages")}
        if _is_rendered(row, method):
            own["rendered"] = row["prompt"]
        yield {
            "data_source": config.data_source or method,
            "prompt": messages,
            "ability": _ABILITY[method],
            "reward_model": {
                "style": "rule" if method == "rlp" else "model",
                "ground_truth": row.get("target") or row.get("reference") or "",
            },
            "extra_info": {"index": index, "id": row["id"], "split": split},
            **own,
        }


def _is_rendered(row: Mapping[str, Any], method: str) -> bool:
    """Whether the prompt is a text that has to stay one: of a frame, or what a base model of RLPT goes on."""
    return bool(row.get("messages")) or (method == "rlpt" and isinstance(row["prompt"], str))


def _schema(given: Any, method: str) -> Any:
    """verl's columns, and behind them those of the input."""
    import pyarrow as pa

    text = pa.string()
    own = [field for field in given if field.name not in ("prompt", "messages")]
    if "messages" in given.names or (method == "rlpt" and given.field("prompt").type == text):
        own.append(pa.field("rendered", text))
    return pa.schema(
        [
            ("data_source", text),
            ("prompt", pa.list_(pa.struct([("role", text), ("content", text)]))),
            ("ability", text),
            ("reward_model", pa.struct([("style", text), ("ground_truth", text)])),
            ("extra_info", pa.struct([("index", pa.int64()), ("id", text), ("split", text)])),
            *own,
        ]
    )
