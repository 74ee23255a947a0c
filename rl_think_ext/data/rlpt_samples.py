"""One document into the rows of RLPT: which segments are targets, what the prompt shows, and what is the reference.

Segments s_1 .. s_n; a target is one of s_2 .. s_(n-1), as in the paper (arXiv 2509.19249). Everything is a slice of the
text: `context` ends where `reference` begins, and what MSR shows begins where s_i ends. What is too short to be a
segment stays in these slices.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from rl_think_ext.data.pii import has_mask
from rl_think_ext.data.segment_rows import SegmentRow
from rl_think_ext.data.sources import Document
from rl_think_ext.methods.rlpt import Task, render_asr, render_msr
from rl_think_ext.segment import Segments, drop_short

if TYPE_CHECKING:
    from rl_think_ext.data.rlpt import RLPTDataConfig
    from rl_think_ext.data.rlpt_cap import PromptCap

Span = tuple[int, int]

TOO_SHORT, TOO_LONG = "segment shorter than min_segment_chars", "segment longer than max_segment_chars"
MASKED = "a mask in the segment, or in what the prompt shows behind it"
NO_ROOM = "not even the segment before fits into the prompt"


class Drawn(NamedTuple):
    """A target: the number of its segment, and what is asked about it."""

    number: int
    task: Task


@dataclass
class Text:
    """A document with its segments; `starts` is where each of them begins."""

    document: Document
    spans: Sequence[Span]

    def __post_init__(self) -> None:
        self.text = self.document.text
        self.starts = [start for start, _ in self.spans]

    def shown_behind(self, drawn: Drawn) -> str:
        """What the prompt of MSR shows behind the mask, the white space before it included."""
        if drawn.task == "asr":
            return ""
        return self.text[self.spans[drawn.number][1] : self.spans[drawn.number + 1][1]]

    def context(self, drawn: Drawn, first: int) -> str:
        """What stands before the target, from a segment on."""
        return self.text[self.starts[first] : self.starts[drawn.number]]

    def prompt(self, drawn: Drawn, first: int) -> str:
        """What the policy is asked."""
        context = self.context(drawn, first)
        return render_asr(context) if drawn.task == "asr" else render_msr(context, self.shown_behind(drawn))


class Samples:
    """Makes the rows of a document, and counts what is no target.

    Args:
        config: The builder's settings.
        segmenter: Spans of a text.
        cap: How many tokens a prompt may have; without it contexts are held to `max_context_chars`.
    """

    def __init__(self, config: RLPTDataConfig, segmenter: Segments, cap: PromptCap | None = None) -> None:
        self.config, self.segmenter, self.cap = config, segmenter, cap
        self.left_out: Counter[str] = Counter()
        self.num_cut = 0

    def __call__(self, document: Document) -> Iterator[SegmentRow]:
        """The rows of a document in the order of its text; none where it has fewer than three segments."""
        spans = self.segmenter(document.text)
        text = Text(document, drop_short(spans, self.config.min_segment_chars))
        if num_short := len(spans) - len(text.spans):
            self.left_out[TOO_SHORT] += num_short
        targets = list(self.targets(text))
        firsts = self.cap.firsts(text, targets) if self.cap else [self._first(text, drawn) for drawn in targets]
        for drawn, first in zip(targets, firsts, strict=True):
            if first is None:
                self.left_out[NO_ROOM] += 1
            else:
                self.num_cut += first > 0
                yield self._row(text, drawn, first)

    def targets(self, text: Text) -> Iterator[Drawn]:
        """The segments that are predicted: those that can be, or `num_targets` of them by a hash."""
        masked = has_mask(text.text)
        found = []
        for index in range(1, len(text.spans) - 1):
            drawn = Drawn(index, self._task(text.document.id, text.starts[index]))
            if reason := self._no_target(text, drawn, masked):
                self.left_out[reason] += 1
            else:
                found.append(drawn)
        most = self.config.num_targets
        if most is not None and most < len(found):
            places = sorted(found, key=lambda drawn: self._draw("target", text.document.id, text.starts[drawn.number]))
            found = sorted(places[:most])
        yield from found

    def _no_target(self, text: Text, drawn: Drawn, masked: bool) -> str:
        start, end = text.spans[drawn.number]
        if self.config.max_segment_chars is not None and end - start > self.config.max_segment_chars:
            return TOO_LONG
        if masked:
            shown = text.spans[drawn.number + (drawn.task == "msr")][1]
            return MASKED if has_mask(text.text[start:shown]) else ""
        return ""

    def _task(self, document_id: str, position: int) -> Task:
        return "msr" if self._draw("task", document_id, position) < self.config.msr_share else "asr"

    def _draw(self, what: str, document_id: str, position: int) -> float:
        """A number in [0, 1) that depends on the seed and the place alone: no other setting moves it."""
        given = f"{what}\0{self.config.seed}\0{document_id}\0{position}"
        return int.from_bytes(blake2b(given.encode(), digest_size=6).digest(), "big") / 2**48

    def _first(self, text: Text, drawn: Drawn) -> int | None:
        """The first segment of the context where no token is counted; None where not even one fits."""
        lowest = text.starts[drawn.number] - self.config.max_context_chars
        first = bisect_left(text.starts, lowest)
        return first if first < drawn.number else None

    def _row(self, text: Text, drawn: Drawn, first: int) -> SegmentRow:
        start = text.starts[drawn.number]
        ends = self._ends(text, drawn)
        prompt = text.prompt(drawn, first)
        return {
            "id": f"{text.document.id}:{start}",
            "prompt": [{"role": "user", "content": prompt}] if self.config.form == "chat" else prompt,
            "task": drawn.task,
            "context": text.context(drawn, first),
            "next_segment": text.shown_behind(drawn),
            "reference": text.text[start : start + ends[-1]],
            "segment_ends": ends,
            "source": text.document.source,
            "position": start,
        }

    def _ends(self, text: Text, drawn: Drawn) -> list[int]:
        """Where the reference's segments end, counted from its start.

        Of MSR it is s_i alone unless `msr_reference` is through: what the prompt shows is not to be predicted. A mask
        ends it as well.
        """
        num = self.config.num_reference_segments
        if drawn.task == "msr" and self.config.msr_reference == "masked":
            num = 1
        spans = text.spans[drawn.number : drawn.number + num]
        start, ends = spans[0][0], [spans[0][1] - spans[0][0]]
        for first, end in spans[1:]:
            if has_mask(text.text[first:end]):
                break
            ends.append(end - start)
        return ends
