"""Write what RLPT's miniature recipe learns from: `python -m rl_think_ext.tiny.segment_data --output DIR`.

DIR/texts/train.parquet are plain documents, which `rl-think data rlpt` cuts; DIR/sft/train.parquet are instructions
with mediocre answers for the cold start, DIR/rlvr/train.parquet questions with their solutions. Held-out programs are
in none of them.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_think_ext.tiny.chat_data import write
from rl_think_ext.tiny.segment_examples import QUALITY, Chat, quiz_chat, quiz_rows, segment_chat
from rl_think_ext.tiny.segments import Document, document_rows, documents

TEXTS, SFT_ROWS, RLVR_ROWS = 2500, 3000, 2000
SEED = 30


def documents_of_training() -> list[Document]:
    """The documents of DIR/texts, with the programs that they are about."""
    return documents("train", SEED, TEXTS)


def chat_row(chat: Chat) -> dict[str, Any]:
    """A chat in TRL's columns of a prompt and its completion."""
    return {
        "prompt": [{"role": "user", "content": chat.prompt}],
        "completion": [{"role": "assistant", "content": chat.said}],
    }


def sft_rows(seed: int, n: int) -> list[dict[str, Any]]:
    """Instructions for the cold start: as many quizzes as segments, well-formed, no better reasoned than before."""
    rng = random.Random(f"sft:{seed}")
    makers = (lambda: quiz_chat(rng, QUALITY), lambda: segment_chat(rng, QUALITY, malformed=0.0))
    return [chat_row(makers[i % 2]()) for i in range(n)]


def tables() -> dict[str, list[dict[str, Any]]]:
    """The rows of every file, by its path below the output folder."""
    return {
        "texts/train.parquet": document_rows(documents_of_training()),
        "sft/train.parquet": sft_rows(SEED, SFT_ROWS),
        "rlvr/train.parquet": quiz_rows(SEED, RLVR_ROWS),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Raises:
        UserError: files that are there already, without --overwrite.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for texts/, sft/ and rlvr/")
    parser.add_argument("--overwrite", action="store_true", help="write over the files that are there")
    args = parser.parse_args(argv)
    write(args.output, tables(), args.overwrite)


if __name__ == "__main__":
    main()
