"""The text filters as datatrove pipelines, for more text than one machine reads: the same filters, other executors.

    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    depends = None
    for stage in pipeline(lambda: JsonlReader("raw"), JsonlWriter("clean"), folder="minhash", num_tasks=8):
        depends = LocalPipelineExecutor(stage.steps, tasks=stage.num_tasks, logging_dir=f"logs/{stage.name}",
                                        depends=depends)
    depends.run()

The signatures and the pairs that count are those of one machine. Differs: the pairs are joined to clusters, and of a
cluster one text stays, not always the first (docs/text-filters.md).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from datatrove.data import Document
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.typeshelper import StatHints
from datatrove.utils.word_tokenizers import WordTokenizer

from rl_think_ext.data.band_index import MAX_BUCKET
from rl_think_ext.data.decontaminate import Benchmark, Decontamination
from rl_think_ext.data.near_duplicates import NearDuplicateConfig, NearDuplicates
from rl_think_ext.data.pii import Pii
from rl_think_ext.data.rules import Rules, RulesConfig

_Place = tuple[int, int]  # a task's number, and that of a document among those it read
_WORD = re.compile(r"\w+|[^\w\s]+")


class Stage(NamedTuple):
    """What one executor runs, after the one before it: `steps` in order, in `num_tasks` tasks."""

    name: str
    steps: list[PipelineStep]
    num_tasks: int


class PlainWords(WordTokenizer):
    """Words and runs of punctuation; datatrove's own for English needs spaCy."""

    def word_tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return _WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Not used by any step here."""
        raise NotImplementedError("these steps split no sentences")

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Not used by any step here."""
        raise NotImplementedError("these steps split no sentences")


@cache
def plain_words() -> PlainWords:
    """The one tokenizer that all steps share: datatrove remembers the words of a text by it."""
    return PlainWords()


class Signatures(MinhashDedupSignature):
    """datatrove's first stage with the signatures of NearDuplicates, written by document as well, for Similarity."""

    def __init__(self, folder: str, config: NearDuplicateConfig) -> None:
        super().__init__(folder, minhash_config(config), language=plain_words())
        self.near = NearDuplicates(config)
        self._rows: Any = None

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Write the bands of each document, and its minima in their order."""
        with self.output_folder.open(_minima_file(rank), mode="wb") as self._rows:
            super().run(data, rank, world_size)

    def get_shingles(self, text: str) -> Any:
        """[N] hashes of the runs of words; none where the text has no word."""
        shingles = self.near.shingles(text)
        if not len(shingles):
            self._rows.write(bytes(4 * self.num_hashes))
        return shingles

    def get_signature(self, shingles: Any) -> list[list[int]]:
        """The minima of each band."""
        minima = self.near.minima(shingles)
        self._rows.write(minima.astype("<u4").tobytes())
        return minima.reshape(self.near.bands.num, self.near.bands.rows).tolist()


class Similarity(PipelineStep):
    """Takes out the pairs that share a band by chance, between datatrove's second stage and its third.

    datatrove writes each text of a bucket beside the next; here a text is compared with all before it (MAX_BUCKET at
    most), and stays beside the first that it is near.
    """

    type = "🫂 - DEDUP"
    name = "🎯 MinHash similarity"

    def __init__(self, signatures: str, buckets: str, output: str, config: NearDuplicateConfig) -> None:
        super().__init__()
        self.signatures, self.buckets = get_datafolder(signatures), get_datafolder(buckets)
        self.output_folder = get_datafolder(output)
        self.num_perm, self.least_equal = config.bands().num_perm, config.least_equal()

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Each task takes its share of the files, and writes as many."""
        with ExitStack() as stack, self.track_time():
            opened: dict[int, Any] = {}
            for name in sorted(self.buckets.list_files(glob_pattern="*.dups"))[rank::world_size]:
                with self.buckets.open(name, mode="rb") as pairs, self.output_folder.open(name, mode="wb") as out:
                    for group in _groups(pairs.read()):
                        for number in {number for number, _ in group} - opened.keys():
                            opened[number] = stack.enter_context(self.signatures.open(_minima_file(number), mode="rb"))
                        for first, second in self._near(group, opened):
                            out.write(struct.pack("<4I", *first, *second))
                            self.stat_update("pairs")

    def _near(self, group: list[_Place], opened: dict[int, Any]) -> Iterator[tuple[_Place, _Place]]:
        minima = np.stack([self._minima(opened[file], row) for file, row in group])
        for at in range(1, len(group)):
            equal = (minima[: min(at, MAX_BUCKET)] == minima[at]).sum(axis=1)
            if (equal >= self.least_equal).any():
                yield group[int(np.argmax(equal >= self.least_equal))], group[at]

    def _minima(self, handle: Any, row: int) -> Any:
        size = 4 * self.num_perm
        handle.seek(row * size)
        return np.frombuffer(handle.read(size), dtype="<u4")


def _minima_file(rank: int) -> str:
    return f"minima/{rank:05d}.u4"


def _groups(data: bytes) -> Iterator[list[_Place]]:
    """The buckets of a file of pairs: datatrove writes a bucket of a, b, c as a-b, b-c."""
    group: list[_Place] = []
    for file, row, next_file, next_row in struct.iter_unpack("<4I", data):
        if not group or group[-1] != (file, row):
            if group:
                yield group
            group = [(file, row)]
        group.append((next_file, next_row))
    if group:
        yield group


class PiiStep(PipelineStep):
    """Masks each text and counts the masks by kind."""

    type = "✂️ - FORMAT"
    name = "PII"

    def __init__(self) -> None:
        super().__init__()
        self.pii = Pii()

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterable[Document]:
        """The same documents, masked."""
        for document in data:
            self.stat_update(StatHints.total)
            with self.track_time():
                document.text, found = self.pii(document.text)
            for kind, num in found.items():
                self.stat_update(f"masked_{kind}", value=num)
            yield document


class DecontaminationStep(BaseFilter):
    """Drops what holds a piece of a benchmark; the reason names it."""

    name = "Decontamination"

    def __init__(self, decontamination: Decontamination, exclusion_writer: Any = None) -> None:
        super().__init__(exclusion_writer)
        self.decontamination = decontamination

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """True, or False and the benchmark."""
        name = self.decontamination(doc.text)
        return True if name is None else (False, f"benchmark {name}")


class RulesStep(BaseFilter):
    """Drops what breaks a rule; the reason names it."""

    name = "Rules"

    def __init__(self, rules: Rules, exclusion_writer: Any = None) -> None:
        super().__init__(exclusion_writer)
        self.rules = rules

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """True, or False and the rule."""
        reason = self.rules(doc.text)
        return True if reason is None else (False, reason)


def minhash_config(config: NearDuplicateConfig) -> MinhashConfig:
    """datatrove's settings with our bands; 32-bit minima, as ours."""
    num, rows, _ = config.bands()
    return MinhashConfig(
        n_grams=config.ngram, num_buckets=num, hashes_per_bucket=rows, seed=config.seed, hash_config=HashConfig(32)
    )


def pipeline(
    reader: Callable[[], PipelineStep],
    writer: PipelineStep,
    *,
    folder: str,
    num_tasks: int = 1,
    near: NearDuplicateConfig | None = None,
    benchmarks: Iterable[Benchmark] = (),
    rules: RulesConfig | None = None,
) -> list[Stage]:
    """Near-duplicates, PII, decontamination, rules: five stages, each for an executor that depends on the one before.

    Args:
        reader: Makes a reader; it is called twice, as the texts are read for their signatures and once more.
        writer: What writes the texts that stay.
        folder: Where signatures and duplicates go between the stages, seen by all machines.
        num_tasks: Tasks that read texts; the shards of the input are dealt to them.
        near: What counts as a near-duplicate; `verify` has no effect here.
        benchmarks: None are looked for without them.
        rules: What a text must keep to.
    """
    near = near or NearDuplicateConfig()
    minhash = minhash_config(near)
    given = list(benchmarks)
    clean: list[PipelineStep] = [PiiStep()]
    clean += [DecontaminationStep(Decontamination(given))] if given else []
    clean += [RulesStep(Rules(rules)), writer]
    return [
        Stage("signatures", [reader(), Signatures(f"{folder}/signatures", near)], num_tasks),
        Stage(
            "buckets",
            [MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets", config=minhash)],
            minhash.num_buckets,
        ),
        Stage(
            "similarity",
            [Similarity(f"{folder}/signatures", f"{folder}/buckets", f"{folder}/pairs", near)],
            minhash.num_buckets,
        ),
        Stage("clusters", [MinhashDedupCluster(f"{folder}/pairs", f"{folder}/remove", config=minhash)], 1),
        Stage("filters", [reader(), MinhashDedupFilter(f"{folder}/remove"), *clean], num_tasks),
    ]
