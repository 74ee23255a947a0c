"""Sentence spans with exact offsets and a time bound: nltk's Punkt with words of our own, no data file needed.

Three things surround Punkt. Formulas and code are masked by as many letters, so that no full stop inside them ends a
sentence. Text is read in windows, so that no input takes more than a fixed time per character. And only the *ends*
come from Punkt, from segment_rules.py others: the spans are built here, so that they always slice back and nothing but
white space lies between.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

from rl_think_ext.errors import UserError
from rl_think_ext.segment_own import OwnSegments, Span
from rl_think_ext.segment_rules import block_ends, holds, mask, other_ends, with_tail
from rl_think_ext.segment_words import lexicon_of, read_abbreviations

RULES = 2  # goes up with every change that moves an end; tests/test_segment.py keeps the digest that belongs to it
_LAST_SPACE = re.compile(r"\s\S*\Z")


class Segments(Protocol):
    """What cuts a text into segments: ours, or a function of the user's own."""

    @property
    def name(self) -> str:
        """What a card says of it: the same name, the same spans."""

    def __call__(self, text: str) -> list[Span]:
        """Start and end of every segment, in order."""


@dataclass(frozen=True)
class Segmenter:
    """Cuts text into sentences; it can be pickled, and says in its `name` what it depends on.

    Args:
        language: Whose abbreviations and first words of sentences count: en, de, fr, es, it, pt, nl, pl, ru and more.
        abbreviations: Instead of the language's own, in lower case without the last full stop.
        model: "own": these words alone, the same on every machine. "nltk": nltk's trained model of the language
            (`punkt_tab`) as well, which has to be installed.
        max_chars: Longer sentences are cut.

    Raises:
        UserError: an unknown language, no such model, `max_chars` under 1.

    >>> Segmenter("de")("Er kam am 3. Mai an. Es regnete.")
    [(0, 20), (21, 32)]
    """

    language: str = "en"
    abbreviations: tuple[str, ...] | None = None
    model: Literal["own", "nltk"] = "own"
    max_chars: int = 10_000

    def __post_init__(self) -> None:
        if self.max_chars < 1:
            raise UserError(f"max_chars is at least 1, got {self.max_chars}")
        if self.model not in ("own", "nltk"):
            raise UserError(f"segments: model is own or nltk, not {self.model!r}")
        self._punkt  # noqa: B018 - what it lacks is said here, not at the first text

    def __call__(self, text: str) -> list[Span]:
        """Start and end of every sentence of `text`, in order, in characters; see `sentence_spans`."""
        masked, stops = mask(text)
        spans: list[Span] = []
        start = 0
        for stop in sorted({*stops, *block_ends(masked), len(masked)}):
            for end in self._paragraph_ends(masked, start, stop):
                piece = text[start:end]
                first = start + len(piece) - len(piece.lstrip())
                if stripped := piece.strip():
                    spans.append((first, first + len(stripped)))
                start = end
        return spans

    @property
    def name(self) -> str:
        """Language, model and a digest of all words: what a card says, and what a cache may be named by."""
        parameters = self._punkt._params
        words = [RULES, sorted(set(parameters.abbrev_types)), sorted(parameters.collocations)]
        words += [sorted(parameters.sent_starters), sorted(parameters.ortho_context.items())]
        digest = hashlib.sha256(repr((words, self.max_chars)).encode()).hexdigest()[:12]
        return f"punkt {self.language} {self.model} {digest}"

    @property
    def _punkt(self) -> Any:
        return _punkt(self.language, self.abbreviations, self.model)

    def _paragraph_ends(self, text: str, start: int, stop: int) -> Iterator[int]:
        """Sentence ends of text[start:stop], the last of them `stop`, read in windows of at most `max_chars`."""
        while stop - start > self.max_chars:
            window = text[start : start + self.max_chars]
            # Cut before the last word: Punkt looks at the whole word behind a full stop.
            space = _LAST_SPACE.search(window)
            size = space.start() if space and space.start() else self.max_chars
            ends = self._ends(text, start, start + size) or [start + size]
            yield from ends
            start = ends[-1]
        yield from self._ends(text, start, stop)
        if start < stop:
            yield stop

    def _ends(self, text: str, start: int, stop: int) -> list[int]:
        """Ends of the sentences inside text[start:stop], without `stop` itself."""
        try:
            found = self._punkt.span_tokenize(text[start:stop], False)
            marks = {start + end for _, end in found}
        except TimeoutError:  # nltk's own guard; the window then counts as one sentence
            marks = set()
        marks.update(other_ends(text, start, stop, self.language))
        lexicon = _lexicon(self.language, self.abbreviations)
        ends: list[int] = []
        last = start
        for mark in sorted(marks):
            end = with_tail(text, mark)
            if last < end < stop and holds(text, last, mark, end, lexicon):
                ends.append(end)
                last = end
        return ends


_lexicon = cache(lexicon_of)


@cache
def _punkt(language: str, abbreviations: tuple[str, ...] | None, model: str) -> Any:
    from rl_think_ext.segment_punkt import punkt  # nltk takes a while to import

    return punkt(_lexicon(language, abbreviations), model, abbreviations is None)


def sentence_spans(
    text: str, *, language: str = "en", abbreviations: tuple[str, ...] | None = None, max_chars: int = 10_000
) -> list[Span]:
    """Start and end of every sentence of `text`, in order, in characters.

    A span neither starts nor ends with white space, spans do not overlap, and only white space lies between them. A
    blank line always ends a sentence; headings, items of lists, rows of tables and blocks of code stand alone. A
    sentence longer than `max_chars` is cut at its last white space, or hard where there is none; time is linear in the
    text: under a second for 20,000 characters of any kind (F30).

    Raises:
        UserError: an unknown language, or `max_chars` under 1.

    >>> text = "See Fig. 3, by Dr. Smith. It costs $3.50, i.e. little."
    >>> [text[start:end] for start, end in sentence_spans(text)]
    ['See Fig. 3, by Dr. Smith.', 'It costs $3.50, i.e. little.']
    """
    return Segmenter(language, abbreviations, max_chars=max_chars)(text)


def segmenter_of(
    segmenter: str = "own", *, language: str = "en", abbreviations: str | None = None, max_chars: int = 10_000
) -> Segments:
    """The segmenter that settings name.

    Args:
        segmenter: "own", "nltk" (see `Segmenter`), or a function of the user's own as `module:function`.
        language: As in `Segmenter`.
        abbreviations: A file with one abbreviation per line, instead of the language's own.
        max_chars: Longer sentences are cut.

    Raises:
        UserError: nothing of this name, or what the segmenter cannot work with.

    >>> segmenter_of("rl_think_ext.segment:sentence_spans").name
    'rl_think_ext.segment:sentence_spans'
    """
    if ":" in segmenter:
        if (language, abbreviations) != ("en", None):
            raise UserError(f"segments: {segmenter} is a function of your own; it takes no language or abbreviations")
        return OwnSegments(segmenter)
    if segmenter not in ("own", "nltk"):
        raise UserError(f"segments: the segmenter is own, nltk or module:function, not {segmenter!r}")
    words = None if abbreviations is None else read_abbreviations(abbreviations)
    return Segmenter(language, words, "nltk" if segmenter == "nltk" else "own", max_chars)


def drop_short(spans: Sequence[Span], min_chars: int) -> list[Span]:
    """The spans of at least `min_chars` characters.

    A span that is left out is no segment: never a target, never the one that follows. Its text stays where it is, so
    that a context, which is the text up to where a target starts, still holds it.

    Paper: "segments that are too short are dropped"; it does not say whether their text goes as well.

    >>> drop_short([(0, 4), (5, 40)], 10)
    [(5, 40)]
    """
    return [(start, end) for start, end in spans if end - start >= min_chars]
