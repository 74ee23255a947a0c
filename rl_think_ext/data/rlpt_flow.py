"""Documents through the steps of the RLPT pipeline: workers look at texts, this process compares and keeps order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rl_think_ext.data.near_duplicates import Exact, NearDuplicates
from rl_think_ext.data.rlpt_parts import Parts, next_key
from rl_think_ext.data.rlpt_quality import Quality
from rl_think_ext.data.rlpt_report import Report
from rl_think_ext.data.sources import Document
from rl_think_ext.data.workers import Workers

if TYPE_CHECKING:
    from rl_think_ext.data.rlpt import RLPTDataConfig

_DOCUMENTS, _CHARS = 256, 250_000  # of a part
KEY_BYTES = 16  # of what equal texts are known by


class Chunk(NamedTuple):
    """Some documents of the input, in their order; `done` where their part is there from an earlier build."""

    key: str
    documents: list[Document]
    done: bool


def chunks(documents: Iterable[Document], key: str, parts: Parts) -> Iterator[Chunk]:
    """Documents in parts that do not depend on the number of workers."""
    waiting: list[Document] = []
    num_chars = 0
    for document in documents:
        waiting.append(document)
        num_chars += len(document.text)
        if len(waiting) >= _DOCUMENTS or num_chars >= _CHARS:
            key = next_key(key, waiting)
            yield Chunk(key, waiting, parts.has(key))
            waiting, num_chars = [], 0
    if waiting:
        key = next_key(key, waiting)
        yield Chunk(key, waiting, parts.has(key))


class Duplicates:
    """Finds the texts that stood in the input before; signatures are to come in the order of the input."""

    def __init__(self, config: RLPTDataConfig) -> None:
        self.exact = Exact()
        self.near = NearDuplicates(config.near) if config.dedup == "near" else None

    def __call__(self, document: Document, signature: bytes) -> tuple[str, str] | None:
        """Why a text has to go, and which text it repeats where that is known; None where it stays."""
        if self.exact.add(signature[:KEY_BYTES]):
            return "duplicate", ""
        earlier = self.near.add(document.id, signature[KEY_BYTES:]) if self.near else None
        return None if earlier is None else ("near-duplicate", f"of {earlier}")


@dataclass
class Flow:
    """One build: makes all parts that are not there, and tells their keys in the order of the input.

    Attributes:
        report: Seconds of this process.
    """

    config: RLPTDataConfig
    parts: Parts
    workers: Workers
    quality: Quality | None
    report: Report = field(default_factory=Report)

    def __call__(self, documents: Iterable[Document], key: str) -> list[str]:
        """The keys of all parts, every one of them whole."""
        from tqdm import tqdm

        keys: list[str] = []
        documents = self._read(documents)
        with tqdm(desc="documents", unit="", disable=None) as bar:
            num_rows = 0
            for report in self.workers.map(*self._last(self._new(self._compared(documents, key), keys, bar))):
                num_rows += report.num_rows.total()
                bar.update(report.num_read)
                bar.set_postfix(rows=num_rows, refresh=False)
        return keys

    def _read(self, documents: Iterable[Document]) -> Iterator[Document]:
        found = iter(documents)
        while True:
            with self.report.timed("reading"):
                document = next(found, None)
            if document is None:
                return
            yield document

    def _compared(self, documents: Iterable[Document], key: str) -> Iterator[tuple[Chunk, Report]]:
        """All chunks with a report that says how many documents came and which of them are duplicates."""
        found = chunks(documents, key, self.parts)
        if self.config.dedup == "none":
            yield from ((chunk, Report(num_read=len(chunk.documents))) for chunk in found)
            return
        duplicates = Duplicates(self.config)
        for chunk, signatures in self._signed(found):
            report = Report(num_read=len(chunk.documents))
            kept = []
            with self.report.timed("duplicates"):
                for document, signature in zip(chunk.documents, signatures, strict=True):
                    if verdict := duplicates(document, signature):
                        report.take("duplicates", verdict[0], document, shown=False, note=verdict[1])
                    else:
                        kept.append(document)
            yield chunk._replace(documents=kept), report

    def _signed(self, found: Iterator[Chunk]) -> Iterator[tuple[Chunk, list[bytes]]]:
        waiting: list[Chunk] = []

        def tasks() -> Iterator[tuple[Any, ...]]:
            for chunk in found:
                waiting.append(chunk)
                yield chunk.documents, self.parts.path(chunk.key)

        for signatures in self.workers.map("sign", tasks()):
            yield waiting.pop(0), signatures

    def _new(self, found: Iterator[tuple[Chunk, Report]], keys: list[str], bar: Any) -> Iterator[tuple[Any, ...]]:
        """What has to be made; the key of what is there is noted as well."""
        for chunk, report in found:
            keys.append(chunk.key)
            if chunk.done:
                bar.update(report.num_read)
            else:
                yield chunk.documents, report, self.parts.path(chunk.key)

    def _last(self, tasks: Iterator[tuple[Any, ...]]) -> tuple[str, Iterator[tuple[Any, ...]]]:
        """The last method of the workers, and its tasks: with a quality filter this process asks in between."""
        return ("write", self._asked(tasks)) if self.quality else ("run", tasks)

    def _asked(self, tasks: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        from tqdm import tqdm

        assert self.quality
        paths: list[Path] = []

        def noted() -> Iterator[tuple[Any, ...]]:
            for documents, report, path in tasks:
                paths.append(path)
                yield documents, report

        bar: tqdm[Any]
        with tqdm(desc="asked", unit="", disable=None) as bar:
            for documents, report in self.workers.map("clean", noted()):
                yield self.quality(documents, report, bar), report, paths.pop(0)
