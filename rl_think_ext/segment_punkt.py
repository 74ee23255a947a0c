"""nltk's Punkt with words that are given, not learned, and quicker where its answer is plain."""

from __future__ import annotations

import re

from nltk.data import find
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer, load_punkt_params

from rl_think_ext.errors import UserError
from rl_think_ext.segment_words import Lexicon, words_of

_MANY_LETTERS = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]\Z")
_CLOSERS = tuple("\"')]}”’»")
_BEGINS_UPPER, _INSIDE_LOWER = 1 << 1, 1 << 5  # Punkt's flags of the same meaning


class QuickPunkt(PunktSentenceTokenizer):
    """Punkt, without its look at the words around an end where the word before is plain: same answers, half the time.

    >>> QuickPunkt(PunktParameters()).text_contains_sentbreak("sat. The")
    True
    """

    def __init__(self, parameters: PunktParameters) -> None:
        super().__init__(parameters)
        self._doubtful = {first for first, _ in parameters.collocations}

    def text_contains_sentbreak(self, text: str) -> bool:
        """Whether a word, its mark and the token behind it hold an end."""
        word, stop, rest = text.partition(".")
        # "of.", a word in letters that is no abbreviation: Punkt breaks whatever follows, but for another stop.
        if stop and len(word) > 1 and word.isalpha() and rest and (rest[0].isspace() or rest in _CLOSERS):
            lower = word.lower()
            if lower not in self._params.abbrev_types and lower not in self._doubtful and rest.lstrip()[:1] != ".":
                return True
        return bool(super().text_contains_sentbreak(text))


class _Orthography(dict[str, int]):
    """Punkt's table of words, which must not grow by every word that it is asked for."""

    def __missing__(self, word: str) -> int:
        return 0


class _Abbreviations(set[str]):
    """Abbreviations, to which single letters with full stops between belong: "u.s", "j.r.r", "т.д"."""

    def __contains__(self, word: object) -> bool:
        return super().__contains__(word) or (isinstance(word, str) and _MANY_LETTERS.match(word) is not None)


def punkt(lexicon: Lexicon, model: str, learned: bool) -> QuickPunkt:
    """Punkt with the words of `lexicon`.

    Args:
        lexicon: Abbreviations and first words of sentences.
        model: "own" for these alone, "nltk" for those of nltk's trained model as well.
        learned: Whether abbreviations that the model has learned count; they do not where a file replaces them.

    Raises:
        UserError: nltk's model is not installed, or there is none of this language.
    """
    parameters = PunktParameters() if model == "own" else _installed(lexicon.language)
    old = parameters.abbrev_types if learned else ()
    parameters.abbrev_types = _Abbreviations(lexicon.abbreviations.union(old))
    parameters.collocations = {*parameters.collocations, *((word, "##number##") for word in lexicon.before_number)}
    starters = dict.fromkeys(lexicon.starters, _BEGINS_UPPER | _INSIDE_LOWER)
    parameters.ortho_context = _Orthography({**parameters.ortho_context, **starters})
    return QuickPunkt(parameters)


def _installed(language: str) -> PunktParameters:
    """The parameters of nltk's trained model of the language."""
    name = words_of(language).model
    if not name:
        raise UserError(f"segments: nltk has no model of the language {language}; model: own does without")
    try:
        return load_punkt_params(find(f"tokenizers/punkt_tab/{name}/"))
    except LookupError:
        hint = "python -m nltk.downloader punkt_tab"
        raise UserError(f"segments: nltk's model {name} is not installed ({hint}); model: own does without") from None
