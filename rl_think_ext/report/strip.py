"""The gain along a document: its text put together out of contexts, and the value of every scored target in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from rl_think_ext.report.samples import Sample
from rl_think_ext.report.text import signed

# What a page shows of one document, and of the plain text between two scored places.
_MOST_DOCUMENTS, _MOST_LINES, _MOST_SPANS = 3, 12, 160
_BETWEEN, _LINE_CONTEXT, _TARGET = 240, 90, 240
# Characters that two cuts of one text have to share before one is laid over the other.
_HEAD, _LEAST_SHARED = 32, 8
_SCALES = (0.1, 0.2, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4, 3.2, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)
_PICTURES = str.maketrans({" ": "␣", "\t": "⇥", "\n": "↵", "\r": "↵"})
# Bins on either side of zero; the style sheet has a colour for each.
NUM_BINS = 4


@dataclass(frozen=True)
class Span:
    """A piece of text; scored where `num_samples` is above 0, with its mean gain in nats or None (unscorable)."""

    text: str
    gain: float | None = None
    num_samples: int = 0
    reason: str | None = None

    @property
    def lead(self) -> str:
        """White space in front, which is left plain: a coloured line end is a sliver of colour far from its word."""
        return self.text[: len(self.text) - len(self.text.lstrip())] if self.text.strip() else ""

    @property
    def body(self) -> str:
        """The text without it; of white space alone a picture."""
        return self.text.lstrip() or self.text.translate(_PICTURES)

    @property
    def label(self) -> str:
        """The value as it stands beside the text, so that no colour is needed to read it."""
        return signed(self.gain, 1) if self.gain is not None else "n/a"


@dataclass(frozen=True)
class Strip:
    """A document, or one line of it, with its scored places."""

    document: str
    spans: tuple[Span, ...]
    num_positions: int

    @property
    def num_shown(self) -> int:
        """How many of its places stand in `spans`."""
        return sum(span.num_samples > 0 for span in self.spans)


@dataclass(frozen=True)
class Strips:
    """What the page shows: long documents, or several short ones, and the end of the colour scale in nats."""

    long: tuple[Strip, ...]
    short: tuple[Strip, ...]
    scale: float

    def shade(self, gain: float | None) -> str:
        """The class of the colour whose value is nearest: n (unscorable), m4 … m1, z, p1 … p4.

        >>> Strips((), (), 2.0).shade(2.5), Strips((), (), 2.0).shade(-0.6), Strips((), (), 2.0).shade(0.1)
        ('p4', 'm1', 'z')
        """
        if gain is None:
            return "n"
        step = min(NUM_BINS, int(abs(gain) / self.scale * NUM_BINS + 0.5))
        return f"{'p' if gain > 0 else 'm'}{step}" if step else "z"

    @property
    def legend(self) -> list[tuple[str, str]]:
        """Class and value of each colour, from the lowest to the highest."""
        values = [step * self.scale / NUM_BINS for step in range(-NUM_BINS, NUM_BINS + 1)]
        return [(self.shade(value), signed(value, 1 if self.scale >= 2 else 2)) for value in values]


def strips(samples: Sequence[Sample]) -> Strips:
    """The documents with the most scored places; where none has three, several of them, one a line."""
    documents: dict[str, dict[tuple[int, str], list[Sample]]] = {}
    for sample in samples:
        document, position = sample.place
        key = (position if position is not None else len(sample.context), sample.context)
        documents.setdefault(document, {}).setdefault(key, []).append(sample)
    ranked = sorted(documents.items(), key=lambda item: -len(item[1]))
    long = tuple(_long(name, list(places.values())) for name, places in ranked[:_MOST_DOCUMENTS] if len(places) >= 3)
    chosen = [] if long else _spread(list(documents.items()), _MOST_LINES)
    short = tuple(_line(name, list(places.values())) for name, places in chosen)
    return Strips(long, short, _scale(span.gain for strip in long + short for span in strip.spans))


def on_one_scale(found: Sequence[Strips]) -> list[Strips]:
    """The same with one colour scale, so that two folders can be compared by eye."""
    scale = max((one.scale for one in found if one.long or one.short), default=1.0)
    return [replace(one, scale=scale) for one in found]


def _spread(items: list[tuple[str, dict[tuple[int, str], list[Sample]]]], most: int) -> list:  # type: ignore[type-arg]
    """Items at even distances: chosen by their place in the table, never by their gain."""
    return [items[i * len(items) // most] for i in range(most)] if len(items) > most else items


def _scale(gains: Iterable[float | None]) -> float:
    """The end of the colour scale: near the largest value, a number that people read easily."""
    sizes = sorted(abs(gain) for gain in gains if gain is not None)
    largest = sizes[int(0.95 * (len(sizes) - 1))] if sizes else 1.0
    return next((edge for edge in _SCALES if largest <= edge), _SCALES[-1])


def _value(samples: Sequence[Sample], text: str) -> Span:
    known = [sample.value for sample in samples if sample.value is not None]
    reason = next((sample.reason for sample in samples if sample.reason), "no score")
    return Span(text, fmean(known) if known else None, len(samples), None if known else reason)


def _line(document: str, places: list[list[Sample]]) -> Strip:
    samples = places[-1]
    context = samples[0].context
    before = Span(context if len(context) <= _LINE_CONTEXT else "…" + context[-_LINE_CONTEXT:])
    return Strip(document, (before, _value(samples, samples[0].target[:_TARGET] or "…")), 1)


def _long(document: str, places: list[list[Sample]]) -> Strip:
    places = sorted(places, key=lambda samples: (samples[0].place[1] or 0, len(samples[0].context)))
    text, starts = assemble([(samples[0].context, samples[0].target) for samples in places])
    spans: list[Span] = []
    at = 0
    for index, (start, samples) in enumerate(zip(starts[:_MOST_SPANS], places, strict=False)):
        stop = min([start + len(samples[0].target), *starts[index + 1 : index + 2]])
        if start > at or not spans:
            spans.append(Span(_shortened(text[at:start], first=not spans)))
        spans.append(_value(samples, text[start:stop][:_TARGET]))
        at = max(at, stop)
    return Strip(document, tuple(span for span in spans if span.text), len(places))


def _shortened(text: str, *, first: bool) -> str:
    if len(text) <= _BETWEEN:
        return text
    left_out = f" … {len(text) - _BETWEEN:,} characters … "
    return left_out.lstrip() + text[-_BETWEEN:] if first else text[: _BETWEEN // 2] + left_out + text[-_BETWEEN // 2 :]


def assemble(places: Sequence[tuple[str, str]]) -> tuple[str, list[int]]:
    """The text of a document out of its contexts and targets in ascending order, and where each target starts.

    A context that was cut on the left is laid over the end of the text so far; where the two do not meet, the gap is
    marked.

    >>> assemble([("One.", " Two"), ("One. Two and a half.", " Three"), ("and a half. Three.", " Four")])
    ('One. Two and a half. Three. Four', [4, 20, 27])
    """
    text, starts = "", [0]
    for context, target in places:
        at = _overlap(text, context, starts[-1])
        if at is None:
            text = f"{text} […] " if text else ""
            at = len(text)
        # A longer target of an earlier place may reach behind this one: then the text is known already.
        text = text if at + len(context) < len(text) else text[:at] + context
        starts.append(at + len(context))
        text = text if starts[-1] + len(target) < len(text) else text[: starts[-1]] + target
    return text, starts[1:]


def _overlap(text: str, context: str, least: int) -> int | None:
    """Where a context lies on a text so that the two agree and it ends behind `least`; None: nowhere."""
    if context.startswith(text):
        return 0
    at = text.find(context[:_HEAD])
    while at >= 0:
        shared = min(len(text) - at, len(context))
        if at + len(context) > least and text[at : at + shared] == context[:shared]:
            return at
        at = text.find(context[:_HEAD], at + 1)
    sizes = range(min(_HEAD, len(context)), _LEAST_SHARED - 1, -1)
    return next((len(text) - size for size in sizes if text.endswith(context[:size])), None)
