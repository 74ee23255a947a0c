"""`rl-think data METHOD`: build a dataset of texts or chats; the flags are the fields of the builder's dataclass."""

from __future__ import annotations

import io
import sys
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from rl_think_ext.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from rl_think_ext.data.card import Card


class Method(NamedTuple):
    """A builder: its module, its dataclass of flags, and what it is for."""

    module: str
    config: str
    about: str
    example: str


METHODS = {
    "rlp": Method(
        "rl_think_ext.data.rlp",
        "RLPDataConfig",
        "contexts and targets: every text is cut at sentences, at random, by stride or by entropy",
        "--input corpus.jsonl --output data/rlp --tokenizer Qwen/Qwen3-1.7B-Base",
    ),
    "rlmt": Method(
        "rl_think_ext.data.rlmt",
        "RLMTDataConfig",
        "prompts: chats that end with a user's message, filtered by form, duplicates, language and length",
        "--input prompts.jsonl --output data/rlmt --tokenizer Qwen/Qwen2.5-7B-Instruct",
    ),
    "rlmt-sft": Method(
        "rl_think_ext.data.rlmt_sft",
        "RLMTSFTDataConfig",
        "warm start: a teacher behind an OpenAI-compatible server plans and answers, the right form is kept",
        "--input prompts.jsonl --output data/rlmt-sft --endpoint http://localhost:8000 --model teacher",
    ),
    "rlmt-dpo": Method(
        "rl_think_ext.data.rlmt_dpo",
        "RLMTDPODataConfig",
        "preference pairs: several outputs of a policy, the best against the worst by a reward model",
        "--input data/rlmt --output data/rlmt-dpo --model out/sft --reward-model models/reward",
    ),
    "rlpt": Method(
        "rl_think_ext.data.rlpt",
        "RLPTDataConfig",
        "segments to be predicted: plain text without duplicates, personal data and benchmarks, cut into sentences",
        "--input corpus.jsonl --output data/rlpt --tokenizer Qwen/Qwen3-4B --decontaminate math=math.jsonl:problem",
    ),
    "verl": Method(
        "rl_think_ext.data.verl_rows",
        "VerlDataConfig",
        "a folder of rlp, rlpt or rlmt once more, in the columns that verl's own dataset class reads",
        "--input data/rlp --output data/rlp-verl",
    ),
}


def usage() -> str:
    """What `rl-think data --help` prints."""
    width = max(map(len, METHODS))
    rows = "\n".join(f"  {name:<{width}}  {method.about}" for name, method in METHODS.items())
    examples = "\n".join(f"  rl-think data {name} {method.example}" for name, method in METHODS.items())
    return (
        f"usage: rl-think data METHOD [OPTIONS]\n\nmethods:\n{rows}\n\nfor example:\n{examples}\n\n"
        "`rl-think data METHOD --help` explains every option."
    )


def run(argv: list[str]) -> int:
    """Build the dataset that the flags ask for, and show what became of the input; returns the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    method = METHODS.get(argv[0])
    if method is None:
        raise UserError(f"there is no method `{argv[0]}`; known are {', '.join(METHODS)}")
    try:
        import tyro

        module = import_module(method.module)
        config = tyro.cli(getattr(module, method.config), args=argv[1:], prog=f"rl-think data {argv[0]}")
        card = module.build(config)
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install 'rl_think_ext[data]'") from error
    show(card, config.output)
    return 0


def show(card: Card, output: str) -> None:
    """Print the counts of a card as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from rl_think_ext.data.card import WORDS

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files go to terminals that have not their letters
    words = WORDS[card.method]
    table = Table(title=f"{escape(card.source)} → {escape(output)}", title_justify="left")
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_row(f"{words.units} used", f"{card.num_documents:,}")
    for name, number in card.num_rows.items():
        table.add_row(f"rows in {name}.parquet", f"{number:,}")
    if card.num_cut_contexts:
        table.add_row("contexts cut on the left", f"{card.num_cut_contexts:,}")
    for name, count in card.counts.items():
        table.add_row(escape(name), f"{count:,}")
    _add_steps(table, card)
    table.add_section()
    for title, counts in ((words.units_out, card.skipped_documents), (words.rows_out, card.skipped_positions)):
        for reason, number in counts.items():
            table.add_row(escape(f"{title[0].lower()}{title[1:]}: {reason}"), f"{number:,}")
    console = Console()
    console.print(table)
    console.print(f"content hash {card.content_hash[:16]}, settings and versions in card.json", highlight=False)


def _add_steps(table: Table, card: Card) -> None:
    """How many documents a pipeline's steps let through, and how long they took."""
    if card.steps or card.seconds:
        table.add_section()
    for step in card.steps:
        table.add_row(f"after {step['step']}: documents left", f"{step['went_on']:,}")
    for name, seconds in card.seconds.items():
        table.add_row(f"{name}: seconds", f"{seconds:,.1f}")
