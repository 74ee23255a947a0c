"""Sentence spans with exact offsets and a time bound: nltk's Punkt with an abbreviation set of our own, no data file.

Three things surround Punkt. Formulas and code are masked by as many letters, so that no full stop inside them ends a
sentence. Text is read in windows, so that no input takes more than a fixed time per character. And only the *ends*
come from Punkt: the spans are built here, so that they always slice back and nothing but white space lies between.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

ABBREVIATIONS = """
    al approx arg art assn ave ca cf ch chap co col corp dept def dr e.g ed eds eq eqn eqs esp est etc ex exp
    fig figs ff gen gov hon i.e ibid inc jr ltd max messrs min mr mrs ms nr p par pp ph.d prof prop
    pt rd ref refs rep resp rev sec sect sen sr ssp st tab thm u.k u.s univ viz vol vols vs w.r.t a.k.a s.t a.m p.m
    b.sc m.sc b.a m.a d.c jan feb mar apr jun jul aug sep sept oct nov dec
"""
# Words that are abbreviations only before a number: "No. 5" against "Is it? No."
BEFORE_NUMBER = "no nos eq fig ex ch art sec sect p pp vol tab"
# Upper case here means the start of a sentence, even behind "etc." or the point "B.": Punkt learns such words from
# a corpus, and these are the ones that every English text has.
STARTERS = """
    the this these those that it its he she they we you there then thus therefore hence so since if when while where
    which what who how why let in on at for from to as by with because but and or not now next first second finally
    also however after before since our his her their note suppose assume consider find given each every all some
"""

_MATH = re.compile(
    r"""
    \$\$[^$]+\$\$
    | (?<!\\)\$(?![\s$])(?:[^$\\\n]|\\[^\n]|\n(?!\s*\n))+(?<!\s)\$(?!\d)     # pandoc's rule: "$5 and $6" is money
    | \\\((?:(?!\\[()]).)*\\\)
    | \\\[(?:(?!\\[\[\]]).)*\\\]
    | \\begin\{(?P<env>[a-zA-Z]+\*?)\}(?:(?!\\begin|\\end).)*\\end\{(?P=env)\}
    | (?P<code>```(?:(?!```).)*```|\[asy\](?:(?!\[/?asy\]).)*\[/asy\])
    """,
    re.VERBOSE | re.DOTALL,
)
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
_NOT_SPACE = re.compile(r"\S")
_LAST_SPACE = re.compile(r"\s\S*\Z")
_OTHER_SCRIPTS = re.compile("[。！？।؟]+[”’」』）)]*")
_MARKER = re.compile(r"\(?(?:\d{1,3}|[A-Za-z]|[ivxIVX]{1,5})[.)]+\Z")  # "1." or "(b)." at the start of an item


def sentence_spans(text: str, *, max_chars: int = 10_000) -> list[tuple[int, int]]:
    """Start and end of every sentence of `text`, in order, in characters.

    A span neither starts nor ends with white space, spans do not overlap, and only white space lies between them. A
    blank line always ends a sentence. A sentence longer than `max_chars` is cut at its last white space, or hard
    where there is none; time is linear in the text: under a second for 20,000 characters of any kind (F30).

    Raises:
        ValueError: `max_chars` under 1.

    >>> text = "See Fig. 3, by Dr. Smith. It costs $3.50, i.e. little."
    >>> [text[start:end] for start, end in sentence_spans(text)]
    ['See Fig. 3, by Dr. Smith.', 'It costs $3.50, i.e. little.']
    """
    if max_chars < 1:
        raise ValueError(f"max_chars is at least 1, got {max_chars}")
    masked = _MATH.sub(_mask, text)
    spans: list[tuple[int, int]] = []
    start = 0
    for stop in [match.end() for match in _BLANK_LINE.finditer(masked)] + [len(masked)]:
        for end in _paragraph_ends(masked, start, stop, max_chars):
            piece = text[start:end]
            first = start + len(piece) - len(piece.lstrip())
            if stripped := piece.strip():
                spans.append((first, first + len(stripped)))
            start = end
    return spans


def _mask(match: re.Match[str]) -> str:
    """As many letters as the formula has, and its full stop at the very end: `$x = 3.$` ends a sentence."""
    formula = match.group()
    inner = formula[: formula.rfind("\\end")] if match["env"] else formula.rstrip("$)]\\")
    inner = inner.rstrip(" \t\r\n}")
    stops = not match["code"] and inner.endswith(".") and not inner.endswith("..")
    return "X" * (len(formula) - 1) + ("." if stops else "X")


def _paragraph_ends(text: str, start: int, stop: int, max_chars: int) -> Iterator[int]:
    """Sentence ends of text[start:stop], the last of them `stop`, read in windows of at most `max_chars`."""
    while stop - start > max_chars:
        window = text[start : start + max_chars]
        # Cut before the last word: Punkt looks at the whole word behind a full stop.
        space = _LAST_SPACE.search(window)
        size = space.start() if space and space.start() else max_chars
        ends = [start + end for end in _ends(window[:size])] or [start + size]
        yield from ends
        start = ends[-1]
    yield from (start + end for end in _ends(text[start:stop]))
    if start < stop:
        yield stop


def _ends(window: str) -> list[int]:
    """Ends of the sentences inside a window, without the end of the window itself."""
    try:
        found = {end for _, end in _punkt().span_tokenize(window)}
    except TimeoutError:  # nltk's own guard; the window then counts as one sentence
        found = set()
    found = {end for end in found if end < len(window) and window[end].isspace()}
    found |= {match.end() for match in _OTHER_SCRIPTS.finditer(window) if match.end() < len(window)}
    ends: list[int] = []
    last = 0
    for end in sorted(found):
        if _is_end(window, last, end):
            ends.append(end)
            last = end
    return ends


def _is_end(window: str, last: int, end: int) -> bool:
    """Whether a break that Punkt proposes at `end` holds, where the one before it lies at `last`."""
    found = _NOT_SPACE.search(window, end)
    if not found:
        return False
    following = found.group()
    # "5! = 120", '"Why?" he said': a mark that is no full stop, and what follows goes on.
    if window[max(last, end - 4) : end].rstrip("\"'”’»)]}")[-1:] in ("!", "?"):
        return not following.islower() and following not in "=+-*/^<>|,;:"
    # A marker is short: text that is longer need not be looked at, so that the scan stays linear.
    return not (end - last < 20 and _MARKER.match(window[last:end].strip()))


class _Orthography(dict[str, int]):
    """Punkt's table of words, which must not grow by every word that it is asked for."""

    def __missing__(self, word: str) -> int:
        return 0


@cache
def _punkt() -> Any:
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    begins_upper, inside_lower = 1 << 1, 1 << 5  # Punkt's flags of the same meaning
    parameters = PunktParameters()
    parameters.abbrev_types = set(ABBREVIATIONS.split())
    parameters.collocations = {(word, "##number##") for word in BEFORE_NUMBER.split()}
    parameters.ortho_context = _Orthography(dict.fromkeys(STARTERS.split(), begins_upper | inside_lower))
    return PunktSentenceTokenizer(parameters)
