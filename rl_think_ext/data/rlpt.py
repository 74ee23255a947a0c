"""Build the data of RLPT: plain text in, segments that are to be predicted out, one row for each.

    rl-think data rlpt --input corpus/ --output data/rlpt --tokenizer Qwen/Qwen3-4B-Base --form text --workers 8

The paper's steps in its order (arXiv 2509.19249): duplicates, PII, decontamination, rules, a quality filter by a
language model, segments, samples. Documents stream through; what is done is kept until the folder is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rl_think_ext import __version__
from rl_think_ext.data.card import Card, keep_apart, versions, whole_folder
from rl_think_ext.data.cells import Columns, source_name
from rl_think_ext.data.decontaminate import Decontamination
from rl_think_ext.data.journal import open_journal
from rl_think_ext.data.near_duplicates import NearDuplicateConfig
from rl_think_ext.data.rlpt_flow import Flow
from rl_think_ext.data.rlpt_parts import Parts, merge, open_parts
from rl_think_ext.data.rlpt_quality import Quality, QualityFlags
from rl_think_ext.data.rlpt_report import STEPS, Report
from rl_think_ext.data.rlpt_steps import Steps, benchmarks
from rl_think_ext.data.rules import RulesConfig
from rl_think_ext.data.segment_rows import schema
from rl_think_ext.data.sources import Tally, read_documents
from rl_think_ext.data.workers import Workers
from rl_think_ext.errors import UserError

REMOVED = "removed.jsonl"
FORMAT = 1  # goes up when parts of an earlier version would not be the same any more
_AT_LEAST = {
    "num_reference_segments": 1,
    "num_targets": 1,
    "min_segment_chars": 1,
    "max_segment_chars": 1,
    "max_prompt_tokens": 1,
    "max_context_chars": 1,
    "decontamination_ngram": 1,
    "workers": 1,
}
_FILES = ("input", "tokenizer", "abbreviations", "quality_prompt")
# What decides no row.
_ASIDE = (
    "output",
    "overwrite",
    "workers",
    "max_skipped_share",
    "api_key_env",
    "max_concurrency",
    "timeout",
    "deadline",
    "retries",
    "max_failed_share",
)


@dataclass(frozen=True, kw_only=True)
class RLPTDataConfig(QualityFlags):
    """Cut plain text into segments to be predicted by RLPT, into a folder that datasets.load_dataset reads.

    Args:
        input: A .txt, .jsonl or .parquet file, a folder of these, or a `datasets` name.
        output: The folder that is made. It appears only when everything is in it; an interrupted build goes on with
            the same command.
        column: The column that holds the text.
        id_column: The column that holds a document's id; without it the row number is the id.
        split: Which split to read of a `datasets` name.
        msr_share: Share of the rows that are MSR (both sides are shown), the others are ASR. Where the trainer cannot
            weight its advantages, lambda / (1 + lambda) stands for lambda.
        num_reference_segments: Segments of a reference, from the target on. The paper says "several".
        msr_reference: masked: the reference of MSR is the missing segment, and stops before what the prompt shows;
            through: it goes on, so that a copy of what is shown can be rewarded.
        num_targets: Segments per document that are predicted, drawn by seed and document id; None takes all.
        min_segment_chars: Shorter segments are no targets; their text stays in contexts and references. The paper
            drops segments that are too short and gives no length.
        max_segment_chars: Longer segments are no targets: what has no end for so long is no sentence.
        segmenter: own, nltk (its trained model, which has to be installed), or module:function.
        language: Whose sentences are cut, as an ISO 639 code. Texts of other languages are not taken out.
        abbreviations: A file of abbreviations, one a line, in place of the language's own.
        tokenizer: The policy's, a folder or hub name. With it prompts are held to `max_prompt_tokens`.
        max_prompt_tokens: Longest prompt as the policy reads it, chat template included. A longer context loses its
            left end, up to the start of a segment. Needs `tokenizer`.
        max_context_chars: Longest context without a tokenizer, cut in the same way.
        form: Prompts as chats with one message of the user, or as plain text for a base model without a template.
        dedup: near: texts that share most of their runs of words with an earlier one go, the same ones too; exact:
            those that are the same but for case, Unicode form and white space; none.
        near: How near-duplicates are found.
        pii: Mask e-mail addresses, IP addresses, phone numbers, cards, IBANs and keys. What holds a mask is no target.
        decontaminate: Benchmarks that nothing may be trained on, as NAME=PATH, or NAME=PATH:COLUMN,COLUMN.
        decontamination_ngram: Words of a run that a text and a benchmark must not share.
        rules: Leave out texts that break a rule of the rule filter.
        rule: The rules.
        test_share: Share of the documents that go to test.parquet, by a hash of their id.
        seed: Seed of the draws; with the input it decides every row.
        workers: Processes. The rows are the same for any number.
        max_skipped_share: Stop when a larger share of the rows of the input cannot be used.
        overwrite: Replace a dataset that an earlier build left in `output`.
    """

    input: str
    output: str
    column: str = "text"
    id_column: str = "id"
    split: str = "train"
    msr_share: float = 0.5
    num_reference_segments: int = 3
    msr_reference: Literal["masked", "through"] = "masked"
    num_targets: int | None = None
    min_segment_chars: int = 20
    max_segment_chars: int | None = 4000
    segmenter: str = "own"
    language: str = "en"
    abbreviations: str | None = None
    tokenizer: str | None = None
    max_prompt_tokens: int = 2048
    max_context_chars: int = 8192
    form: Literal["chat", "text"] = "chat"
    dedup: Literal["near", "exact", "none"] = "near"
    near: NearDuplicateConfig = field(default_factory=NearDuplicateConfig)
    pii: bool = True
    decontaminate: tuple[str, ...] = ()
    decontamination_ngram: int = 13
    rules: bool = True
    rule: RulesConfig = field(default_factory=RulesConfig)
    test_share: float = 0.0
    seed: int = 0
    workers: int = 1
    max_skipped_share: float = 0.2
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"`{name}` is at least {least}, got {value}")
        if not 0.0 <= self.test_share < 1.0 or not 0.0 <= self.max_skipped_share <= 1.0:
            raise UserError("`test_share` is from 0 to below 1, and `max_skipped_share` from 0 to 1")
        if not 0.0 <= self.msr_share <= 1.0:
            raise UserError(f"`msr_share` is from 0 (ASR alone) to 1 (MSR alone), got {self.msr_share}")
        if self.max_segment_chars is not None and self.max_segment_chars < self.min_segment_chars:
            raise UserError("`max_segment_chars` lies below `min_segment_chars`: no segment would be a target")

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that are on, in their order."""
        on = (
            self.dedup != "none",
            True,
            self.pii,
            bool(self.decontaminate),
            self.rules,
            bool(self.quality_server),
            True,
        )
        return tuple(step for step, used in zip(STEPS, on, strict=True) if used)


def build(config: RLPTDataConfig) -> Card:
    """Write train.parquet (and test.parquet), card.json, README.md and removed.jsonl, whole or not at all.

    The same input and seed give the same rows, in the same order, and the same `content_hash`, for any number of
    workers and however often it was interrupted.

    Raises:
        UserError: input, benchmark, tokenizer, server or output that cannot be used, or not a single row.
    """
    given = [config.input, *(one.path for one in benchmarks(config))]
    for source in given:
        keep_apart(source, config.output)
    if config.msr_reference == "through" and config.msr_share:
        warnings.warn("`msr_reference` through: a copy of what the MSR prompt shows can be rewarded", stacklevel=2)
    return _Builder(config).build()


class _Builder:
    """The state of one build."""

    def __init__(self, config: RLPTDataConfig) -> None:
        self.config = config
        self.tally = Tally()
        files = benchmarks(config)
        self.decontamination = Decontamination(files, config.decontamination_ngram) if files else None
        self.made = Steps(config, self.decontamination)

    def build(self) -> Card:
        """Parts first, then the folder out of them."""
        config = self.config
        with ExitStack() as stack:
            parts = stack.enter_context(open_parts(config.output, self._key()))
            folder = stack.enter_context(whole_folder(config.output, overwrite=config.overwrite))
            quality = None
            if config.quality_server:
                quality = Quality(config, stack.enter_context(open_journal(config.output)), masked=config.pii)
            given = (config, self.decontamination)
            with Workers(config.workers, self.made, Steps, *given) as workers:
                flow = Flow(config, parts, workers, quality)
                keys = flow(self._documents(), self._key())
            return self._finish(parts, keys, folder, flow.report)

    def _documents(self) -> Iterator[Any]:
        config = self.config
        columns = Columns(config.column, config.id_column, config.split)
        return read_documents(config.input, columns, max_skipped_share=config.max_skipped_share, tally=self.tally)

    def _key(self) -> str:
        """What decides every row, beside the documents."""
        made: list[object] = [self.made.segments_name, self.made.lengths and self.made.lengths.facts()]
        made += [self.config.quality_words() if self.config.quality_server else ""]
        packages = ("nltk", "pyarrow", "datasketch", "datatrove")
        whole = [FORMAT, __version__, self._settings(), versions(*packages), made]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def _settings(self) -> dict[str, Any]:
        values = {name: value for name, value in dataclasses.asdict(self.config).items() if name not in _ASIDE}
        for name in _FILES:
            values[name] = values[name] and source_name(values[name])
        values["segmenter"] = self.made.segments_name
        found = self.decontamination.report() if self.decontamination else []
        values["decontaminate"] = [{name: one[name] for name in one if name != "hits"} for one in found]
        if self.config.quality_server:
            from rl_think_ext.scoring.endpoint_wire import shown_url

            values["quality_server"] = shown_url(self.config.quality_server)
            values["quality_prompt_sha256"] = hashlib.sha256(self.config.quality_words().encode()).hexdigest()
        if self.made.lengths is None:
            values["max_prompt_tokens"] = "no tokenizer was given: max_context_chars holds"
        return values

    def _finish(self, parts: Parts, keys: list[str], folder: Path, report: Report) -> Card:
        """Put the parts together, and the card beside them."""
        digest, num_rows = hashlib.sha256(), {}
        for key in keys:
            report.add(parts.report(key))
        with report.timed("merging"):
            for split in ("train", "test") if self.config.test_share else ("train",):
                path = folder / f"{split}.parquet"
                num_rows[split], rows = merge(parts, keys, split, path, schema(self.config.form))
                digest.update(rows)
        card = self._card(report, num_rows, digest.hexdigest())
        if not num_rows["train"]:
            parts.forget()
            raise UserError(_no_rows(card))
        card.write(folder)
        lines = [json.dumps(example, ensure_ascii=False) + "\n" for example in report.examples]
        (folder / REMOVED).write_text("".join(lines), encoding="utf-8")
        return dataclasses.replace(card, seconds=report.seconds)

    def _card(self, report: Report, num_rows: dict[str, int], digest: str) -> Card:
        reasons: Counter[str] = Counter(self.tally.skipped)
        for taken in report.taken.values():
            reasons.update(taken)
        counts = {"rows read": self.tally.rows, "documents read": report.num_read}
        counts |= {f"masks put in: {kind}": number for kind, number in sorted(report.masks.items())}
        packages = ["nltk", "pyarrow", *(["transformers", "tokenizers"] if self.config.tokenizer else [])]
        packages += ["datasketch"] if self.config.dedup == "near" else []
        return Card(
            method="rlpt",
            source=source_name(self.config.input),
            seed=self.config.seed,
            num_documents=report.num_documents,
            num_rows=num_rows,
            content_hash=digest,
            skipped_documents=_sorted(reasons),
            skipped_positions=_sorted(report.positions),
            num_cut_contexts=report.num_cut,
            settings=self._settings(),
            tokenizer=self.made.lengths.facts() if self.made.lengths else None,
            versions={"rl_think_ext": __version__, **versions(*packages)},
            counts=counts,
            steps=report.steps(self.config.steps),
        )


def _sorted(counter: Counter[str]) -> dict[str, int]:
    return {reason: count for reason, count in sorted(counter.items()) if count}


def _no_rows(card: Card) -> str:
    if sum(card.num_rows.values()):
        return "every document fell on the test side; lower test_share"
    reasons = {**card.skipped_documents, **card.skipped_positions}
    listed = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    return f"{card.source} gave no row ({listed}); a text needs three segments, the middle one of min_segment_chars"
