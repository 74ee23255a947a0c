"""Where sentences end besides Punkt's ends, and which of those do not hold: lists, quotes, markers, other scripts.

Every pattern takes time in proportion to what it reads, and what a decision reads around an end is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rl_think_ext.segment_words import Lexicon

_MASKED = re.compile(
    r"""
    \$\$[^$]+\$\$
    | (?<!\\)\$(?![\s$])(?:[^$\\\n]|\\[^\n]|\n(?!\s*\n))+(?<!\s)\$(?!\d)     # pandoc's rule: "$5 and $6" is money
    | \\\((?:(?!\\[()]).)*\\\)
    | \\\[(?:(?!\\[\[\]]).)*\\\]
    | \\begin\{(?P<env>[a-zA-Z]+\*?)\}(?:(?!\\begin|\\end).)*\\end\{(?P=env)\}
    | (?P<block>```(?:(?!```).)*```|\[asy\](?:(?!\[/?asy\]).)*\[/asy\])
    # Not LaTeX's quotes: ``A'' and ``B''.
    | (?P<code>(?P<ticks>``?)(?![\s`])[^`\n]+(?<![\s(\[])(?P=ticks))
    """,
    re.VERBOSE | re.DOTALL,
)
_ROW = r"\|(?![-:| \t]{1,200}\|[ \t]*(?:\n|\Z))[^\n]{0,1000}\|[ \t]*(?=\n|\Z)"
_ITEM = r"\(?(?:\d{1,3}|[A-Za-z]|[ivx]{1,4}|[IVX]{1,4})[.)][ \t]"
# A line of Markdown that is a block: whole, from its start on, or (a number) only below a line that ends as one does.
_LINE = re.compile(rf"[ \t]{{0,8}}(?:(?P<whole>\#{{1,6}}[ \t]|{_ROW})|(?P<bullet>[-*+•‣◦▪–—][ \t])|(?P<item>{_ITEM}))")
_BREAK = re.compile(r"\n(?:[ \t\r]*\n|(?=[ \t]{0,8}(?:[-*+•‣◦▪–—#][ \t#]|\||\(?\w{1,4}[.)][ \t])))")
_RULE = re.compile(r"[ \t]{0,8}\|[-:| \t]{1,200}\|[ \t]*(?:\n|\Z)")
_HTML_BLOCK = re.compile(r"</(?:p|li|h[1-6]|div|tr)>")
# What belongs to the end before it: closers, also behind a blank, a note, a tag, a face.
_TAIL = re.compile(
    r"""
    (?:["'”’“»)\]}*_」』）》〉】]{1,40} | (?<=[.!?…])[\xa0\u202f ](?:»|["”’)\]]{1,4}(?=\s|\Z))
        | (?<=[.!?"”\]])\[\^?\d{1,3}\] | [¹²³⁰-⁹]{1,3} | </\w{1,8}>){0,9}
    (?:[ ](?:[:;]-?[()DP]|[\U0001F300-\U0001FAFF\uFE0F\u200d]{1,20})(?=\s|\Z))?
    """,
    re.VERBOSE,
)
# Ends that Punkt does not look at: before a note, a tag or a closing "_", and those of other scripts.
_BEFORE_NOTE = re.compile(r"[.!?](?=\"?(?:\[\^?\d|</[a-z]|_{1,2}\s))")
_OTHER = re.compile('[.!?](?="?[¹²³⁰-⁹])|[。！？।؟۔።։]+(?![。！？।؟۔።։])|…(?=[”’“»"]*\\s)|[😀-😏😘-🙏🎉](?=[ ][A-Z])')
_GREEK = re.compile(r"(?<=[α-ωά-ώ]);(?=\s)")
_ENDS_ANYWHERE = "。！？"
# 「行くよ。」と, “走吧。”他说。: the sentence around what was said goes on.
_SAID_CJK = re.compile("[とっ、，]|\\w{0,4}[說说問问喊叫答道想][道着]?[。，,：:]")
_SAID = re.compile(r"[A-Z][\w.]{0,20} (?:said|asked|cried|replied|answered|shouted|whispered|called|wondered)\b")
_DASH_ON = re.compile(r"(?:[–—]\s?|--?\s)([^\W\d_])")
# "1.", "(b).", "IV)", "P.S.", "Case 2.": the mark of what follows.
_MARKER = re.compile(
    r"(?:#{1,6} |[-*+•] )?(?:\(?(?:\d{1,3}|[A-Za-z]|[ivx]{1,5}|[IVX]{1,5})[.)]+"
    r"|(?:P\.){1,3}S\.|(?:Case|Step|Part|Question) \d{1,3}\.)\Z"
)
_NUMBERED = re.compile(r"[\d(\[~$]|[B-HJ-Z][.,) ]")  # "Fig. 3", "App. B"; "no. I" and "no. A" are none
_NUMBER = re.compile(r"(?<![\d.,])\d{1,2}\.\Z")
_WORD = re.compile(r"[^\s(\[{\"'“«„/]*\Z")
_NOT_SPACE = re.compile(r"\S")
_PAIRS = {")": "(", "”": "“", "»": "«", "」": "「"}
_GOES_ON = "=+-*/^<>|,;:"
_REACH = 200  # how far a decision looks back and ahead for the bracket or the quote that an end may lie in


def mask(text: str) -> tuple[str, list[int]]:
    """The text with letters for its formulas and code, and where its blocks of code begin and end.

    >>> mask("So $x. Y.$ is `a.b`.")
    ('So XXXXXX. is XXXXX.', [])
    """
    stops: list[int] = []

    def letters(match: re.Match[str]) -> str:
        formula = match.group()
        if match["block"]:
            stops.extend(match.span())
        if match["block"] or match["code"]:
            return "X" * len(formula)
        # Its full stop at the very end stays: `$x = 3.$` ends a sentence.
        inner = formula[: formula.rfind("\\end")] if match["env"] else formula.rstrip("$)]\\")
        inner = inner.rstrip(" \t\r\n}")
        stop = inner.endswith(".") and not inner.endswith("..")
        return "X" * (len(formula) - 1) + ("." if stop else "X")

    return _MASKED.sub(letters, text), stops


def block_ends(text: str) -> list[int]:
    """Ends of paragraphs and of lines that are blocks of their own, in the order in which they are found."""
    stops = _whole(text, 0)
    for match in _BREAK.finditer(text):
        line = _LINE.match(text, match.end())
        if match.end() - match.start() > 1 or (line and (not line["item"] or _below_a_block(text, match.start()))):
            stops.append(match.end())
            stops.extend(_whole(text, match.end()))
    if "</" in text:
        stops.extend(match.end() for match in _HTML_BLOCK.finditer(text))
    return stops


def _whole(text: str, start: int) -> list[int]:
    """The end of the line at `start` if it is a heading or the row of a table."""
    line = _LINE.match(text, start)
    end = text.find("\n", start) if line and line["whole"] else -1
    return [end + 1] if end >= 0 and not _RULE.match(text, end + 1) else []


def _below_a_block(text: str, end: int) -> bool:
    """Whether the line that ends at `end` is an item as well, or ends as what stands above a list."""
    if text[max(0, end - 4) : end].rstrip().endswith((".", ":", ";", "!", "?")):
        return True
    before = text.rfind("\n", max(0, end - _REACH), end)
    return (before >= 0 or end < _REACH) and _LINE.match(text, before + 1) is not None


def other_ends(text: str, start: int, stop: int, language: str) -> Iterator[int]:
    """Ends inside text[start:stop] that Punkt does not look at."""
    yield from (match.end() for match in _BEFORE_NOTE.finditer(text, start, stop))
    if not text.isascii():
        yield from (match.end() for match in _OTHER.finditer(text, start, stop))
        if language == "el":
            yield from (match.end() for match in _GREEK.finditer(text, start, stop))


def with_tail(text: str, end: int) -> int:
    """The end moved behind what belongs to it: closing quotes and brackets, the number of a note, a face.

    >>> with_tail('He said "No." :) Then', 12)
    16
    """
    match = _TAIL.match(text, end)
    return match.end() if match else end


def holds(text: str, last: int, mark: int, end: int, lexicon: Lexicon) -> bool:
    """Whether a sentence ends at `end`.

    Args:
        last: Where the sentence before ended.
        mark: Behind its full stop or other mark; what lies between that and `end` is its tail.
        lexicon: The words of the language.
    """
    found = _NOT_SPACE.search(text, end)
    if not found:
        return False
    start, following = found.start(), found.group()
    if following in ".?!" and not text[start + 1 : start + 2].isalnum():  # "Quoi ? !", and not ".NET"
        return False
    if text[mark - 1] in _ENDS_ANYWHERE:
        return mark == end or not _SAID_CJK.match(text, start)
    if (start == end and following not in "¿¡「“") or _inside(text, last, end):
        return False
    dash = _DASH_ON.match(text, start)
    if dash and dash[1].islower():
        return False
    if text[mark - 1] != ".":
        return _holds_behind_mark(text, last, mark, end, start)
    return _holds_behind_stop(text, last, mark, end, start, lexicon)


def _holds_behind_mark(text: str, last: int, mark: int, end: int, start: int) -> bool:
    """Of "!" and "?": "5! = 120" and '"Why?" he said' go on, but not who writes in small letters throughout."""
    closed = mark < end
    if text[start] in _GOES_ON:
        return False
    if text[start].islower():
        return not closed and _begins_small(text, last)
    return not (closed and _SAID.match(text, start))


def _holds_behind_stop(text: str, last: int, mark: int, end: int, start: int, lexicon: Lexicon) -> bool:
    # A marker is short: text that is longer need not be looked at, so that the scan stays linear.
    if end - last < 20 and _MARKER.match(text[last:end].strip()):
        return False
    if mark < end:
        return not text[start].islower()
    near = text[max(last, mark - 20) : mark]
    match = _WORD.search(near)
    word = match.group()[:-1] if match else ""
    if text[start].islower():
        # An abbreviation that nobody listed, or the stop of a formula, unless all is written in small letters.
        return (len(word) > 4 and set(word) != {"X"}) or word.isdigit() or _begins_small(text, last)
    if len(word) == 1 and text[start + 1 : start + 2] == ".":
        return False
    if word.lower() in lexicon.before_number and _NUMBERED.match(text, start):
        return False
    return not (lexicon.ordinals and _NUMBER.search(near) and _next_word(text, start) not in lexicon.starters)


def _next_word(text: str, start: int) -> str:
    return text[start : start + 20].split(None, 1)[0].lower().rstrip(",")


def _begins_small(text: str, last: int) -> bool:
    found = _NOT_SPACE.search(text, last)
    return found is not None and found.group().islower()


def _inside(text: str, last: int, end: int) -> bool:
    """Whether `end` lies in brackets or quotes, and the sentence around them goes on in lower case behind them."""
    first = max(last, end - _REACH)
    for closer, opener in _PAIRS.items():
        opened = text.rfind(opener, first, end)
        if opened >= 0 and text.rfind(closer, opened, end) < 0:
            return _goes_on_behind(text, closer, end)
    if text.count('"', first, end) % 2 and first == last:
        return _goes_on_behind(text, '"', end)
    return False


def _goes_on_behind(text: str, closer: str, end: int) -> bool:
    found = text.find(closer, end, end + _REACH)
    after = text[found + 1 : found + 4].lstrip() if found >= 0 else ""
    return after[:1].islower() or after[:1] in (",", ";")
