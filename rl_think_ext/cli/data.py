"""`rl-think data METHOD`: build a dataset out of plain text; the flags are the fields of the builder's dataclass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rl_think_ext.errors import UserError

if TYPE_CHECKING:
    from rl_think_ext.data.card import Card

METHODS = {"rlp": "contexts and targets: every text is cut at sentences, at random, by stride or by entropy"}


def usage() -> str:
    """What `rl-think data --help` prints."""
    rows = "\n".join(f"  {name:<5} {text}" for name, text in METHODS.items())
    return (
        f"usage: rl-think data METHOD [OPTIONS]\n\nmethods:\n{rows}\n\n"
        "for example: rl-think data rlp --input corpus.jsonl --output data/rlp --tokenizer Qwen/Qwen3-1.7B-Base\n"
        "`rl-think data METHOD --help` explains every option."
    )


def run(argv: list[str]) -> int:
    """Build the dataset that the flags ask for, and show what became of the input; returns the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] not in METHODS:
        raise UserError(f"there is no method `{argv[0]}`; known are {', '.join(METHODS)}")
    try:
        import tyro

        from rl_think_ext.data.rlp import RLPDataConfig, build

        config = tyro.cli(RLPDataConfig, args=argv[1:], prog=f"rl-think data {argv[0]}")
        card = build(config)
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install 'rl_think_ext[data]'") from error
    show(card, config.output)
    return 0


def show(card: Card, output: str) -> None:
    """Print the counts of a card as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{escape(card.source)} → {escape(output)}", title_justify="left")
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_row("documents used", f"{card.num_documents:,}")
    for name, number in card.num_rows.items():
        table.add_row(f"rows in {name}.parquet", f"{number:,}")
    if card.num_cut_contexts:
        table.add_row("contexts cut on the left", f"{card.num_cut_contexts:,}")
    table.add_section()
    for reason, number in card.skipped_documents.items():
        table.add_row(f"documents left out: {reason}", f"{number:,}")
    for reason, number in card.skipped_positions.items():
        table.add_row(f"positions left out: {reason}", f"{number:,}")
    console = Console()
    console.print(table)
    console.print(f"content hash {card.content_hash[:16]}, settings and versions in card.json", highlight=False)
