"""Segments from a user's own function, looked at before they are used."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from rl_think_ext.errors import UserError

Span = tuple[int, int]


@dataclass(frozen=True)
class OwnSegments:
    """A user's own function, `module:function`, from a text to its spans, which are looked at before they are used.

    Raises:
        UserError: no such module or function.

    >>> OwnSegments("rl_think_ext.segment:sentence_spans")("One. Two.")
    [(0, 4), (5, 9)]
    """

    path: str

    def __post_init__(self) -> None:
        _function(self.path)

    @property
    def name(self) -> str:
        """The path: what the function does is the user's own to name."""
        return self.path

    def __call__(self, text: str) -> list[Span]:
        """The function's spans.

        Raises:
            UserError: spans that are no pairs of whole numbers, empty, out of order, over one another or out of text.
        """
        return checked_spans(_function(self.path)(text), text, self.path)


def checked_spans(spans: Any, text: str, name: str) -> list[Span]:
    """Spans as a list of pairs, if they are spans of `text` in order."""
    found: list[Span] = []
    before = 0
    try:
        for start, end in spans:
            if not (type(start) is type(end) is int and before <= start < end <= len(text)):
                raise UserError(
                    f"segments: {name} gave ({start!r}, {end!r}) as segment {len(found)} of {len(text)} characters; "
                    f"whole numbers are needed with {before} <= start < end <= {len(text)}"
                )
            found.append((start, end))
            before = end
    except TypeError as error:
        raise UserError(f"segments: {name} gives no list of (start, end): {error}") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"segments: {name} gives no pairs of (start, end): {error}") from error
    return found


@cache
def _function(path: str) -> Callable[[str], Any]:
    module, colon, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a file of the user's own beside the command
    try:
        function = getattr(import_module(module), name) if colon and module and name else None
    except (ImportError, AttributeError) as error:
        raise UserError(f"segments: cannot load {path}: {error}") from error
    if not callable(function):
        raise UserError(f"segments: {path} is no function; it has the form module:function")
    return function
