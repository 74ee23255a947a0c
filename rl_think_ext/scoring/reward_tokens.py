"""Ids with the place of each in the text: where control tokens are ordinary text, and which ids a cut takes."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Span(NamedTuple):
    """Characters [start, end) of a text that are the content of one message."""

    start: int
    end: int
    message: int


class Tokens(NamedTuple):
    """Ids, and the characters [start, end) that each was made of."""

    ids: list[int]
    places: list[tuple[int, int]]


class Written(Protocol):
    """A text and the contents in it, in their order."""

    @property
    def text(self) -> str: ...

    @property
    def spans(self) -> tuple[Span, ...]: ...


def control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The special ids; not the unknown token, which ordinary text turns into."""
    special = {int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(special - {tokenizer.unk_token_id})


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str, contents: Sequence[Span] = ()) -> Tokens:
    """The ids of a text to which the tokenizer adds nothing.

    With contents their control tokens are ordinary text: the text falls apart at the frame's own control tokens, as it
    does in the tokenizer, and what lies between is encoded with special tokens split.
    """
    if not contents:
        return _encode(tokenizer, text, 0, split=False)
    ids: list[int] = []
    places: list[tuple[int, int]] = []
    at = 0
    for start, end, control in (*_controls(tokenizer, text, contents), (len(text), len(text), None)):
        if at < start:
            found = _encode(tokenizer, text[at:start], at, split=True)
            ids += found.ids
            places += found.places
        if control is not None:
            ids.append(control)
            places.append((start, end))
        at = end
    return Tokens(ids, places)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, start: int, *, split: bool) -> Tokens:
    # Every option is said: a tokenizer may come with other defaults of its own.
    found = tokenizer(
        text,
        add_special_tokens=False,
        truncation=False,
        padding=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        split_special_tokens=split,
        verbose=False,
    )
    places = found["offset_mapping"]
    return Tokens(list(found["input_ids"]), [(a + start, b + start) for a, b in places] if start else list(places))


def _controls(
    tokenizer: PreTrainedTokenizerBase, text: str, contents: Sequence[Span]
) -> Iterator[tuple[int, int, int]]:
    """Start, end and id of every control token between the contents."""
    known = {token.content: (i, token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    if not known:
        return
    # The longest first, as the tokenizer does; a token may swallow the white space beside it.
    words = [
        ("\\s*" if known[word][1].lstrip else "") + f"({re.escape(word)})" + ("\\s*" if known[word][1].rstrip else "")
        for word in sorted(known, key=len, reverse=True)
    ]
    pattern = re.compile("|".join(words))
    borders = [0, *(place for span in contents for place in (span.start, span.end)), len(text)]
    for start, end in zip(borders[::2], borders[1::2], strict=True):
        for match in pattern.finditer(text, start, end):
            assert match.lastindex is not None
            yield match.start(), match.end(), known[match[match.lastindex]][0]


def touches_control(tokens: Tokens, written: Written, control: Container[int]) -> bool:
    """Whether a control token was made of the characters of a content."""
    starts = [span.start for span in written.spans]
    for i, (start, end) in zip(tokens.ids, tokens.places, strict=True):
        if i not in control:
            continue
        # A frame's token may swallow white space of the content beside it.
        word = written.text[start:end]
        first, last = start + len(word) - len(word.lstrip()), end - len(word) + len(word.rstrip())
        for span in written.spans[max(0, bisect_right(starts, first) - 1) :]:
            if span.start >= last:
                break
            if max(first, span.start) < min(last, span.end):
                return True
    return False


def cut(tokens: Tokens, contents: Sequence[Span], order: Sequence[int], num: int) -> set[int]:
    """Which places in `tokens.ids` a cut of `num` takes: of these messages' contents, from the left of each.

    An id that also holds characters of the frame stays. Of a character that takes several ids none stays behind alone,
    so that it may be a few more than `num`; it is less where there is not more to take.
    """
    gone: set[int] = set()
    for message in order:
        last = 0
        for i in _inside(tokens, [span for span in contents if span.message == message]):
            start, end = tokens.places[i]
            if len(gone) >= num and not (gone and start < last):
                return gone
            gone.add(i)
            last = end
    return gone


def _inside(tokens: Tokens, spans: Sequence[Span]) -> Iterator[int]:
    """The ids whose characters lie in one of these spans."""
    for i, (start, end) in enumerate(tokens.places):
        # White space that was left out of the places is counted at its end: at a span's start it is the frame's.
        if any((span.start <= start < end or span.start < start == end) and end <= span.end for span in spans):
            yield i
