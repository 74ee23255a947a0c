"""Text of datasets and models on a page: inert, visible and bounded, whatever stands in it."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from typing import Any

from rl_think_ext.errors import redact

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
# Nobody reads more of a thought on a page, and a page of megabytes opens slowly.
HEAD, TAIL = 1200, 300
_LINE_ENDS = re.compile(r"\r\n?")
# Control, format, surrogate, unassigned; line and paragraph separators.
_NAMED = ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp")
# Half of the world's writing joins with these.
_JOINERS = "\u200c\u200d"
_MOST_MARKS = 4


def clean(text: str) -> str:
    r"""A text in which everything that would act or hide is shown as its code point instead, and keys are left out.

    Control characters, lone surrogates, what turns the direction of the text round and what has no width are named;
    more than a few combining marks in a row are dropped. Tabs and line ends stay.

    >>> clean("a\x00b\u202ec\ud800")
    'a⟨00⟩b⟨202E⟩c⟨D800⟩'
    """
    if text.isascii() and text.isprintable():
        return redact(text)
    marks = 0
    parts: list[str] = []
    for char in _LINE_ENDS.sub("\n", text):
        category = unicodedata.category(char)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if category in _NAMED and char not in "\t\n" + _JOINERS:
            parts.append(f"⟨{ord(char):02X}⟩")
        elif marks <= _MOST_MARKS:
            parts.append(char)
    return redact("".join(parts))


def bounded(text: str, head: int = HEAD, tail: int = TAIL) -> str:
    """The beginning and the end of a long text, and how much was left out between them.

    >>> bounded("abcdefgh", 2, 1)
    'ab … 5 more characters … h'
    """
    left_out = len(text) - head - tail
    return text if left_out <= 0 else f"{text[:head]} … {left_out:,} more characters … {text[-tail:] if tail else ''}"


def ending(text: str, length: int = 280) -> str:
    """The last characters of a context."""
    return text if len(text) <= length else "…" + text[-length:]


def sentence(text: str) -> str:
    """The text with a capital letter; the rest stays as it is."""
    return text[:1].upper() + text[1:]


def number(value: Any) -> float | None:
    """A finite number, or None: a JSON null, NaN, text, a truth value."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def signed(value: float | None, digits: int = 2) -> str:
    """A gain in nats with its sign.

    >>> signed(-0.5), signed(2.0), signed(-0.001), signed(None)
    ('−0.50', '+2.00', '0.00', '–')
    """
    if value is None or math.isnan(value):
        return DASH
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", MINUS)


def percent(value: float | None) -> str:
    """A share, with a digit behind the point.

    >>> percent(0.9785)
    '97.9 %'
    """
    return DASH if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def plain(value: Any) -> str:
    """A setting or a count as people write it; of a path on a disk its last part alone.

    >>> plain(4000), plain(5e-4), plain(True), plain(None), plain("/home/me/models/base")
    ('4,000', '0.0005', 'yes', '–', 'base')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return DASH
    if isinstance(value, int):
        return f"{value:,}".replace("-", MINUS) if abs(value) < 10**18 else f"{value:.3e}"
    if isinstance(value, float):
        return f"{value:.6g}".replace("-", MINUS) if "e" not in f"{value:.6g}" else f"{value:.6g}"
    if isinstance(value, str):
        return bounded(os.path.basename(value.rstrip("/")) or value if value.startswith(("/", "~")) else value, 300, 0)
    if isinstance(value, (list, tuple)):
        return bounded(", ".join(plain(v) for v in value) or DASH, 300, 0)
    if isinstance(value, dict):
        return bounded(", ".join(f"{k} {plain(v)}" for k, v in value.items()) or DASH, 300, 0)
    return bounded(str(value), 300, 0)
