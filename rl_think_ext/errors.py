"""The one error that people cause: its text is a sentence that names the place and says what to do."""

from __future__ import annotations

import re

# One slash as well: libraries that take an address for a path fold the two.
_PASSWORD = re.compile(r"(:/{1,2})[^/@\s]+@")
_KEY = re.compile(r"\b(hf_|sk-)[\w-]{8,}")


def redact(text: str) -> str:
    """A text without the passwords of URLs and without API keys (F39).

    >>> redact("no rows at https://me:secret@host/data with hf_0123456789")
    'no rows at https://***@host/data with hf_***'
    """
    return _KEY.sub(r"\1***", _PASSWORD.sub(r"\1***@", text))


class UserError(ValueError):
    """Wrong input or settings; the commands print its text without a trace and exit with 1. Secrets are left out."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))
