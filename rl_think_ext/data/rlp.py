"""Build an RLP dataset: documents in, one row for every position at which a text is cut into context and target.

    rl-think data rlp --input corpus/ --output data/rlp --tokenizer Qwen/Qwen3-1.7B-Base

With a tokenizer the *ids* are cut and travel with the row; `context` and `target` are the stretches of the original
text that those ids stand for, to be read. Without one the text is cut on characters, and both sides are encoded
apart later (F31). See positions.py for the boundary rule.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rl_think_ext import __version__
from rl_think_ext.data.card import Card, ContentHash, keep_apart, versions, whole_folder
from rl_think_ext.data.cells import Columns, source_name
from rl_think_ext.data.cut import TextCutter, TokenCutter
from rl_think_ext.data.positions import Sampler
from rl_think_ext.data.schema import Row
from rl_think_ext.data.sources import Document, Tally, read_documents
from rl_think_ext.errors import UserError
from rl_think_ext.template import CLOSE_TAG, INSTRUCTION, OPEN_TAG, Elicit, instruction_sides, render

_BATCH = 512
_AT_LEAST = {
    "num_positions": 1,
    "stride": 1,
    "min_context_tokens": 1,
    "min_context_chars": 1,
    "max_context_tokens": 2,
    "max_context_chars": 1,
    "num_target_tokens": 1,
    "max_target_chars": 1,
}


@dataclass(frozen=True, kw_only=True)
class RLPDataConfig:
    """Cut plain text into contexts and targets for RLP, into a folder that datasets.load_dataset reads.

    Args:
        input: A .txt, .jsonl or .parquet file, a folder of these, or a `datasets` name.
        output: The folder that is made. It appears only when everything is in it.
        column: The column that holds the text.
        id_column: The column that holds a document's id; without it the row number is the id.
        split: Which split to read of a `datasets` name.
        tokenizer: Folder or hub name. With it texts are cut on token ids, which the trainer then uses unchanged.
        sampler: Where to cut. sentence: behind sentences; random: anywhere; stride: every so many units; entropy:
            where `model` is least certain of the next token.
        num_positions: Positions per document, drawn by seed and document id; None takes all.
        stride: Distance of the cuts of "stride", in tokens, or in characters without a tokenizer.
        model: Folder or hub name of the model that "entropy" asks.
        min_entropy: The least entropy (nats, over the whole vocabulary) of a position of "entropy".
        min_context_tokens: Shortest context, with a tokenizer.
        min_context_chars: Shortest context, without a tokenizer.
        max_context_tokens: Longest context with a tokenizer, its BOS included; the paper's is 2048.
        max_context_chars: Longest context without a tokenizer.
        overlong: A context above the maximum loses its left end (cut), or is no position (skip). Both are counted.
        num_target_tokens: Target ids stored per row. The trainer takes as many of them as its own setting says.
        max_target_chars: Characters of a target without a tokenizer; None goes to the end of the next sentence, at
            most 1000.
        elicit: How `prompt` asks for a thought. prefill: the opening tag behind the context; generate: the context
            alone; instruct: an instruction around it.
        instruction_file: A text file with {context} in it once, in place of the instruction of "instruct".
        test_share: Share of the documents that go to test.parquet, by a hash of their id.
        seed: Seed of the positions; with the input it decides every row.
        max_skipped_share: Stop when a larger share of the rows of the input cannot be used.
        overwrite: Replace a dataset that an earlier build left in `output`.
    """

    input: str
    output: str
    column: str = "text"
    id_column: str = "id"
    split: str = "train"
    tokenizer: str | None = None
    sampler: Sampler = "sentence"
    num_positions: int | None = None
    stride: int = 64
    model: str | None = None
    min_entropy: float | None = None
    min_context_tokens: int = 8
    min_context_chars: int = 32
    max_context_tokens: int = 2048
    max_context_chars: int = 8192
    overlong: Literal["cut", "skip"] = "cut"
    num_target_tokens: int = 32
    max_target_chars: int | None = None
    elicit: Elicit = "prefill"
    instruction_file: str | None = None
    test_share: float = 0.0
    seed: int = 0
    max_skipped_share: float = 0.2
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"`{name}` is at least {least}, got {value}")
        if not 0.0 <= self.test_share < 1.0 or not 0.0 <= self.max_skipped_share <= 1.0:
            raise UserError("`test_share` is from 0 to below 1, and `max_skipped_share` from 0 to 1")
        if self.sampler == "entropy" and not (self.tokenizer and self.model):
            raise UserError("the sampler entropy needs `tokenizer`, `model` and `num_positions` or `min_entropy`")
        if self.sampler == "entropy" and self.num_positions is None and self.min_entropy is None:
            raise UserError("the sampler entropy needs `num_positions`, `min_entropy` or both")
        if self.sampler != "entropy" and self.model:
            raise UserError(f"`model` is only asked by the sampler entropy, not by {self.sampler}")
        if self.min_entropy is not None and (self.sampler != "entropy" or not 0.0 <= self.min_entropy < float("inf")):
            raise UserError(f"`min_entropy` is at least 0 and for the sampler entropy, got {self.min_entropy}")
        if self.instruction_file and self.elicit != "instruct":
            raise UserError(f"`instruction_file` needs elicit instruct, got {self.elicit}")


def build(config: RLPDataConfig) -> Card:
    """Write train.parquet (and test.parquet), card.json and README.md into `config.output`, whole or not at all.

    The same input and seed give the same rows, in the same order, and the same `content_hash`.

    Raises:
        UserError: input, tokenizer, model or output that cannot be used, or not a single row.
    """
    keep_apart(config.input, config.output)
    instruction = _instruction(config)
    cutter, tokenizer = _cutter(config)
    tally = Tally()
    with whole_folder(config.output, overwrite=config.overwrite) as folder:
        num_documents, num_rows, digest = _write(config, instruction, cutter, tally, folder)
        card = Card(
            method="rlp",
            source=source_name(config.input),
            seed=config.seed,
            num_documents=num_documents,
            num_rows=num_rows,
            content_hash=digest,
            skipped_documents=_counts(tally.skipped + cutter.documents),
            skipped_positions=_counts(cutter.positions),
            num_cut_contexts=cutter.num_cut,
            settings=_settings(config, instruction),
            tokenizer=tokenizer,
            versions={"rl_think_ext": __version__, **versions(*_packages(config))},
        )
        if not num_rows["train"]:
            raise UserError(_no_rows(card))
        card.write(folder)
    return card


def _cutter(config: RLPDataConfig) -> tuple[TextCutter, dict[str, str] | None]:
    if not config.tokenizer:
        return TextCutter(config), None
    from rl_think_ext.scoring.load import load_tokenizer

    tokenizer = load_tokenizer(config.tokenizer)
    cutter = TokenCutter(config, tokenizer)
    state = tokenizer.backend_tokenizer.to_str().encode("utf-8", "surrogatepass")
    return cutter, {"name": source_name(config.tokenizer), "sha256": hashlib.sha256(state).hexdigest()}


def _write(
    config: RLPDataConfig, instruction: str, cutter: TextCutter, tally: Tally, folder: Path
) -> tuple[int, dict[str, int], str]:
    """Stream all rows into the Parquet files; the number of documents used, of rows by split, and their hash."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tqdm import tqdm

    schema, digest = _schema(pa, config), ContentHash()
    names = ("train", "test") if config.test_share else ("train",)
    buffers: dict[str, list[Row]] = {name: [] for name in names}
    num_rows, num_documents = dict.fromkeys(names, 0), 0
    columns = Columns(config.column, config.id_column, config.split)
    documents = read_documents(config.input, columns, max_skipped_share=config.max_skipped_share, tally=tally)
    with ExitStack() as stack:
        files = {n: stack.enter_context(pq.ParquetWriter(folder / f"{n}.parquet", schema)) for n in names}
        for document in tqdm(documents, desc="cutting", unit=" documents", disable=None):
            name, before = _split_of(document.id, config.test_share), sum(num_rows.values())
            for row in _rows(document, config, instruction, cutter):
                digest.add(name, row)
                buffers[name].append(row)
                num_rows[name] += 1
                if len(buffers[name]) >= _BATCH:
                    files[name].write_table(pa.Table.from_pylist(buffers[name], schema=schema))
                    buffers[name].clear()
            num_documents += sum(num_rows.values()) > before
        for name in filter(buffers.get, names):  # `datasets` cannot read a row group of no rows
            files[name].write_table(pa.Table.from_pylist(buffers[name], schema=schema))
    for name in names:
        if not num_rows[name]:  # nor a split of none
            (folder / f"{name}.parquet").unlink()
    return num_documents, num_rows, digest.hexdigest()


def _rows(document: Document, config: RLPDataConfig, instruction: str, cutter: TextCutter) -> Iterator[Row]:
    if OPEN_TAG in document.text or CLOSE_TAG in document.text:
        cutter.documents["thinking tag in the text"] += 1
        return
    refused, empty = cutter.documents.total(), True
    for example in cutter.examples(document):
        empty = False
        row: Row = {
            "id": f"{document.id}:{example.position}",
            "prompt": render(example.context, config.elicit, instruction),
            "context": example.context,
            "target": example.target,
            "source": document.source,
            "position": example.position,
        }
        if example.context_ids is not None and example.target_ids is not None:
            row["context_ids"], row["target_ids"] = list(example.context_ids), list(example.target_ids)
        yield row
    if empty and cutter.documents.total() == refused:
        cutter.documents["no position"] += 1


def _schema(pa: Any, config: RLPDataConfig) -> Any:
    fields = [(name, pa.string()) for name in ("id", "prompt", "context", "target", "source")]
    if config.tokenizer:
        fields += [("context_ids", pa.list_(pa.int32())), ("target_ids", pa.list_(pa.int32()))]
    return pa.schema([*fields, ("position", pa.int64())])


def _split_of(document_id: str, test_share: float) -> str:
    """Whole documents by their id alone: another seed never moves one from the test side to the training side."""
    digest = hashlib.sha256(f"split\0{document_id}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") < test_share * 2**64 else "train"


def _instruction(config: RLPDataConfig) -> str:
    instruction = INSTRUCTION
    if config.instruction_file:
        try:
            instruction = Path(config.instruction_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"could not read the instruction file {config.instruction_file}: {error}") from error
    instruction_sides(config.elicit, instruction)
    return instruction


def _settings(config: RLPDataConfig, instruction: str) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    del values["output"], values["overwrite"]
    for name in ("input", "tokenizer", "model", "instruction_file"):
        values[name] = values[name] and source_name(values[name])
    if config.elicit == "instruct":
        values["instruction_sha256"] = hashlib.sha256(instruction.encode()).hexdigest()
    return values


def _packages(config: RLPDataConfig) -> list[str]:
    extra = ["transformers", "tokenizers"] if config.tokenizer else []
    return ["nltk", "pyarrow", *extra, *(["torch"] if config.model else [])]


def _counts(counter: Counter[str]) -> dict[str, int]:
    return {reason: count for reason, count in sorted(counter.items()) if count}


def _no_rows(card: Card) -> str:
    if sum(card.num_rows.values()):
        return "every document fell on the test side; lower test_share"
    reasons = {**card.skipped_documents, **card.skipped_positions}
    listed = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    return f"{card.source} gave no row ({listed}); shorter contexts or another sampler may"
