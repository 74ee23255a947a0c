"""Is a text in the language that is wanted? py3langid answers, from its own model file, without a download.

What it takes for the language and what it does not is a table in docs/data-rlmt.md, and tests/test_data_rlmt.py holds
it to that table. Short texts, code and mixtures are where it errs.
"""

from __future__ import annotations

import tempfile
from functools import lru_cache
from typing import Any

from rl_think_ext.errors import UserError

CONFIDENCE = 0.2
_CHARACTERS = 20_000  # of a text that are looked at: more of them tell no more, and the time stays bounded
# Languages that are the wanted one as far as a prompt goes: py3langid finds Nigerian Pidgin in short English.
_NEAR = {"en": ("pcm",), "zh": ("wuu", "yue")}


class LanguageFilter:
    """Whether a text is in one language, with at least so much probability.

    Args:
        language: ISO 639 code that py3langid knows.
        confidence: Least probability of that language, above 0 and up to 1.

    Raises:
        UserError: a language that py3langid does not know, or a confidence that is none.
    """

    def __init__(self, language: str, confidence: float = CONFIDENCE) -> None:
        if not 0.0 < confidence <= 1.0:
            raise UserError(f"`language_confidence` is above 0 and at most 1, got {confidence:g}")
        self.confidence = confidence
        self._wanted = {language, *_NEAR.get(language, ())}
        self._identifier = _identifier()
        known = {code for code, _ in self._identifier.rank("")}
        if language not in known:
            raise UserError(f"`language` {language} is no code that py3langid knows; for English it is en")

    def __call__(self, text: str) -> bool:
        """True where the probability of the language reaches the confidence."""
        return self.probability(text) >= self.confidence

    def probability(self, text: str) -> float:
        """Of the language and of those that stand for it, from 0 to 1."""
        ranked = self._identifier.rank(text[:_CHARACTERS])
        return float(sum(p for code, p in ranked if code in self._wanted))


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    try:
        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    except OSError as error:
        folder = tempfile.gettempdir()
        raise UserError(f"py3langid could not unpack its model into {folder}: {error.strerror or error}") from error
