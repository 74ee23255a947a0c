"""What each step of the RLPT pipeline took out and why: counted by the workers, added up, told in card and table."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import process_time
from typing import Any

from rl_think_ext.data.sources import Document

STEPS = ("duplicates", "tags", "pii", "decontamination", "rules", "quality", "segments")
EXAMPLES = 5  # of each reason
_EXCERPT = 200  # characters


@dataclass
class Report:
    """Counts of some documents; JSON can hold it.

    Attributes:
        num_read: Documents that came to the first step.
        taken: Documents that a step took out, by step and reason.
        examples: The first few of them: step, reason, id, source, and an excerpt where the text was masked before.
        masks: What was masked, by kind.
        positions: Segments that are no targets, by reason.
        num_rows: Rows by split.
        num_documents: Documents with a row.
        num_cut: Contexts that lost their left end.
        seconds: By step, over all processes.
        sizes: Bytes of the files that hold the rows, by split.
    """

    num_read: int = 0
    taken: dict[str, dict[str, int]] = field(default_factory=dict)
    examples: list[dict[str, str]] = field(default_factory=list)
    masks: Counter[str] = field(default_factory=Counter)
    positions: Counter[str] = field(default_factory=Counter)
    num_rows: Counter[str] = field(default_factory=Counter)
    num_documents: int = 0
    num_cut: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def take(self, step: str, reason: str, document: Document, *, shown: bool, note: str = "") -> None:
        """Count a document that a step takes out.

        Args:
            shown: Whether an excerpt may be told: never of a text that was not masked yet.
            note: What is told beside it, without a text of its own.
        """
        reasons = self.taken.setdefault(step, {})
        reasons[reason] = reasons.get(reason, 0) + 1
        if reasons[reason] <= EXAMPLES:
            excerpt = " ".join(document.text[:_EXCERPT].split()) if shown else note
            told = {"step": step, "reason": reason, "id": document.id, "source": document.source}
            self.examples.append({**told, "excerpt": excerpt})

    @contextmanager
    def timed(self, step: str, clock: Callable[[], float] = process_time) -> Iterator[None]:
        """Count the seconds that this process works in a block; another clock where it waits."""
        start = clock()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + clock() - start

    def add(self, other: Report) -> None:
        """Take in the counts of documents that come after these."""
        before = {(step, reason): n for step, reasons in self.taken.items() for reason, n in reasons.items()}
        for step, reasons in other.taken.items():
            own = self.taken.setdefault(step, {})
            for reason, number in reasons.items():
                own[reason] = own.get(reason, 0) + number
        told: Counter[tuple[str, str]] = Counter()
        for example in other.examples:
            place = (example["step"], example["reason"])
            told[place] += 1
            if before.get(place, 0) + told[place] <= EXAMPLES:
                self.examples.append(example)
        for name in ("masks", "positions", "num_rows"):
            getattr(self, name).update(getattr(other, name))
        for name, seconds in other.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.num_read += other.num_read
        self.num_documents += other.num_documents
        self.num_cut += other.num_cut

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Report:
        """Out of JSON.

        Raises:
            TypeError: values of another kind.
        """
        counters = {name: Counter(values[name]) for name in ("masks", "positions", "num_rows")}
        return cls(**{**values, **counters})

    def steps(self, used: tuple[str, ...]) -> list[dict[str, Any]]:
        """One entry for each step that was used: how many documents came, how many went on, and the reasons."""
        return list(self._steps(used))

    def _steps(self, used: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        came = self.num_read
        for step in STEPS:
            if step in used:
                reasons = dict(sorted(self.taken.get(step, {}).items(), key=lambda pair: (-pair[1], pair[0])))
                went = came - sum(reasons.values())
                yield {"step": step, "came": came, "went_on": went, "left_out": reasons}
                came = went
