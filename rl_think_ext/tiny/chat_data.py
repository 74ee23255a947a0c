"""Write the prompts and the warm-start examples of the chat task: `python -m rl_think_ext.tiny.chat_data --output DIR`.

DIR/data/train.parquet are prompts for GRPO, DIR/data/test.parquet held-out ones for its evaluation (the dev part);
DIR/sft/train.parquet are thoughts and answers of mixed quality. The numbers that are published come from the test
part, which is in no file.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_think_ext.errors import UserError
from rl_think_ext.tiny.chat_examples import sft_rows
from rl_think_ext.tiny.chat_tokenizers import policy_tokenizer
from rl_think_ext.tiny.chats import prompt_rows

TRAIN_ROWS, TEST_ROWS, SFT_ROWS = 3000, 256, 3000
SEED = 20


def counted_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `num_tokens`, the length of the prompt in the policy's template."""
    tokenizer = policy_tokenizer()
    texts = [tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False) for row in rows]
    lengths = map(len, tokenizer(texts)["input_ids"])
    return [{**row, "num_tokens": length} for row, length in zip(rows, lengths, strict=True)]


def tables() -> dict[str, list[dict[str, Any]]]:
    """The rows of every file, by its path below the output folder."""
    return {
        "data/train.parquet": counted_rows(prompt_rows("train", SEED, TRAIN_ROWS)),
        "data/test.parquet": counted_rows(prompt_rows("dev", SEED, TEST_ROWS)),
        "sft/train.parquet": sft_rows(SEED, SFT_ROWS),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Raises:
        UserError: files that are there already, without --overwrite.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for data/ and sft/")
    parser.add_argument("--overwrite", action="store_true", help="write over the files that are there")
    args = parser.parse_args(argv)
    write(args.output, tables(), args.overwrite)


def write(output: Path, tables: Mapping[str, list[dict[str, Any]]], overwrite: bool) -> None:
    """One parquet file for each table, by its path below the folder.

    Raises:
        UserError: files that are there already, unless they may be written over.
    """
    import pyarrow
    import pyarrow.parquet

    for name, rows in tables.items():
        path = output / name
        if path.exists() and not overwrite:
            raise UserError(f"{path} is there already; say another --output, or --overwrite to lose it")
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, compression="zstd")
        print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
