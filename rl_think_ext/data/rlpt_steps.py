"""The steps of the RLPT pipeline that look at one document at a time, as every worker process runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rl_think_ext.data.decontaminate import Benchmark, Decontamination
from rl_think_ext.data.near_duplicates import Exact, NearDuplicates
from rl_think_ext.data.pii import Pii
from rl_think_ext.data.rlpt_cap import PromptCap, prompt_lengths
from rl_think_ext.data.rlpt_parts import RowFile, read_signatures, save, save_signatures
from rl_think_ext.data.rlpt_report import Report
from rl_think_ext.data.rlpt_samples import Samples
from rl_think_ext.data.rules import Rules
from rl_think_ext.data.sources import Document
from rl_think_ext.data.tables import on_test_side
from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlpt import MASK
from rl_think_ext.segment import segmenter_of
from rl_think_ext.template import CLOSE_PREDICTION, OPEN_PREDICTION, find_tag

if TYPE_CHECKING:
    from rl_think_ext.data.rlpt import RLPTDataConfig

NO_TARGET = "no target"

T = TypeVar("T")


def benchmarks(config: RLPTDataConfig) -> list[Benchmark]:
    """The files of `decontaminate`.

    Raises:
        UserError: an entry of another form.
    """
    found = []
    for given in config.decontaminate:
        name, is_there, rest = given.partition("=")
        path, column, columns = rest.rpartition(":")
        path, columns = (path, columns) if column else (rest, "")
        if not is_there or not path:
            raise UserError(f"`decontaminate` takes NAME=PATH or NAME=PATH:COLUMN,COLUMN, got {given!r}")
        found.append(Benchmark(name, path, tuple(columns.split(","))) if columns else Benchmark(name, path))
    return found


class Steps:
    """Signatures, filters and samples of documents.

    Args:
        config: The builder's settings.
        decontamination: The benchmarks, read once for all workers.
    """

    def __init__(self, config: RLPTDataConfig, decontamination: Decontamination | None) -> None:
        self.config, self.decontamination = config, decontamination
        self.near = NearDuplicates(config.near) if config.dedup == "near" else None
        self.pii = Pii() if config.pii else None
        self.rules = Rules(config.rule) if config.rules else None
        self.lengths = prompt_lengths(config.tokenizer, config.form) if config.tokenizer else None
        cap = PromptCap(self.lengths, config.max_prompt_tokens) if self.lengths else None
        segmenter = segmenter_of(config.segmenter, language=config.language, abbreviations=config.abbreviations)
        self.segments_name = segmenter.name
        self.samples = Samples(config, segmenter, cap)

    def sign(self, documents: Sequence[Document], path: Path) -> list[bytes]:
        """What duplicates are known by; it is kept for a build that goes on."""
        there = read_signatures(path)
        if there is not None and len(there) == len(documents):
            return there
        found = [self._named(document, lambda given: self._signature(given.text)) for document in documents]
        save_signatures(path, found)
        return found

    def _signature(self, text: str) -> bytes:
        return Exact.key(text) + (self.near.signature(text) if self.near else b"")

    def run(self, documents: Sequence[Document], report: Report, path: Path) -> Report:
        """All of it: `clean` and `write`."""
        return self.write(*self.clean(documents, report), path)

    def clean(self, documents: Sequence[Document], report: Report) -> tuple[list[Document], Report]:
        """The documents that pass all filters, masked."""
        kept = list(documents)
        for step, look in self._filters:
            with report.timed(step):
                found = [self._named(document, partial(look, report)) for document in kept]
            kept = [document for document in found if document is not None]
        return kept, report

    @cached_property
    def _filters(self) -> list[tuple[str, Callable[[Report, Document], Document | None]]]:
        """The steps in their order: each gives a document back, or counts why it goes."""
        found: list[tuple[str, Callable[[Report, Document], Document | None]]] = []
        found.append(("tags", partial(self._judged, "tags", self.tag_in, "{}")))
        if self.pii:
            found.append(("pii", partial(self._masked, self.pii)))
        if self.decontamination:
            judge = partial(self._judged, "decontamination", self.decontamination, "holds a piece of {}")
            found.append(("decontamination", judge))
        if self.rules:
            found.append(("rules", partial(self._judged, "rules", self.rules, "{}")))
        return found

    def _masked(self, pii: Pii, report: Report, document: Document) -> Document:
        text, masks = pii(document.text)
        report.masks.update(masks)
        return Document(document.id, text, document.source) if masks else document

    def _judged(
        self, step: str, judge: Callable[[str], str | None], words: str, report: Report, document: Document
    ) -> Document | None:
        verdict = judge(document.text)
        if not verdict:
            return document
        # Tags are looked for before anything is masked.
        report.take(step, words.format(verdict), document, shown=step != "tags" and self.pii is not None)
        return None

    def tag_in(self, text: str) -> str:
        """Why a text would mix with what a prompt or an output is made of (F24, F25)."""
        if "<" in text and any(tag in text for tag in (OPEN_PREDICTION, CLOSE_PREDICTION, MASK)):
            return "tag of the prompts in the text"
        if find_tag(text, "think"):
            return "thinking tag in the text"
        if self.lengths and self.lengths.holds_special([{"role": "user", "content": text}]):
            return "special token in the text"
        return ""

    def write(self, documents: Sequence[Document], report: Report, path: Path) -> Report:
        """Write the rows of some documents and their report; the report is there when the rows are whole."""
        self.samples.left_out.clear()
        self.samples.num_cut = 0
        with ExitStack() as stack:
            files = {name: stack.enter_context(RowFile(path, name, self.config.form)) for name in ("train", "test")}
            for document in documents:
                file = files["test" if on_test_side(document.id, self.config.test_share) else "train"]
                self._named(document, partial(self._write, file, report))
            report.sizes = {name: size for name, file in files.items() if (size := file.close())}
        report.num_rows.update({name: file.num_rows for name, file in files.items() if file.num_rows})
        report.positions.update(self.samples.left_out)
        report.num_cut += self.samples.num_cut
        # A row is written while the next one is made: what the files took is no time of the segments.
        report.seconds["writing"] = spent = sum(file.seconds for file in files.values())
        report.seconds["segments"] = report.seconds.get("segments", 0.0) - spent
        save(path.with_suffix(".json"), report.as_dict())
        return report

    def _write(self, file: RowFile, report: Report, document: Document) -> None:
        before = file.num_rows
        with report.timed("segments"):
            for row in self.samples(document):
                file.add(row)
        if file.num_rows > before:
            report.num_documents += 1
        else:
            report.take("segments", NO_TARGET, document, shown=self.pii is not None)

    def _named(self, document: Document, work: Callable[[Document], T]) -> T:
        """Do something with a document; an error says which one it was."""
        try:
            return work(document)
        except (OSError, MemoryError):
            raise
        except Exception as error:
            what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            where = f"document {document.id[:200]} of {document.source}"
            raise UserError(f"{where}: {what}; leave it out of the input, or change what it fails at") from error
