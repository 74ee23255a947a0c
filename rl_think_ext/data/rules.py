"""Rules that a text must keep to be worth learning from, each with the reason that the card counts it under.

The limits are wide: mathematics and code pass, tables of numbers, endless repetition, notices of web pages and texts
that hold a control token do not. Gopher's own limits, which are for prose, are there with `gopher`.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rl_think_ext.errors import UserError
from rl_think_ext.template import find_tag

BOILERPLATE = (
    "lorem ipsum dolor",
    "please enable javascript",
    "you need to enable javascript",
    "javascript is disabled",
    "javascript is not enabled",
    "does not support javascript",
    "please enable cookies",
)
# What chat templates and tokenizers are made of, full width as well: <|im_start|>, <s>, [INST], <start_of_turn>.
_CONTROL = re.compile(
    r"[<＜][|｜]/?[A-Za-z_][\w ▁]{1,60}[|｜][>＞]|<</?SYS>>|\[/?INST\]|\[(?:MASK|CLS|SEP|PAD|UNK)\]"
    r"|(?i:</?(?:s|bos|eos|pad|unk|mask|sep|cls|start_of_turn|end_of_turn|start_of_image)>)"
)
_BRACKETS = ("<", "＜", "[")
_SPACELESS = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_LETTERS = string.ascii_letters.encode()
_SYMBOLS = {"#": re.compile("#+"), "...": re.compile(r"\.{3,}"), "…": re.compile("…+")}
_RUN = 5


@dataclass(frozen=True, kw_only=True)
class RulesConfig:
    """What a text must keep; 0 turns a rule off.

    Args:
        min_words: Fewest words, parted by white space (two characters count as one in scripts without spaces).
        max_characters: Most characters.
        min_letters: Least share of letters among the characters that are no white space.
        max_word_length: Highest mean length of the words; not in scripts without spaces.
        max_symbols: Most runs of hash signs, or ellipses, per word.
        max_repeated_lines: Highest share of the characters that stand in lines that stood there before.
        max_repeated_runs: Highest share of the runs of five words that stood there before.
        boilerplate: Leave out what holds a phrase of BOILERPLATE.
        control_tokens: Leave out what holds a thinking tag, a role token or another control token.
        gopher: Gopher's quality and repetition filters too, as datatrove has them: for English prose alone.
    """

    min_words: int = 10
    max_characters: int = 1_000_000
    min_letters: float = 0.2
    max_word_length: float = 40.0
    max_symbols: float = 0.2
    max_repeated_lines: float = 0.4
    max_repeated_runs: float = 0.5
    boilerplate: bool = True
    control_tokens: bool = True
    gopher: bool = False

    def __post_init__(self) -> None:
        for name in ("min_letters", "max_repeated_lines", "max_repeated_runs"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"`{name}` is a share from 0 to 1, got {getattr(self, name):g}")
        for name in ("min_words", "max_characters", "max_word_length", "max_symbols"):
            if not getattr(self, name) >= 0:
                raise UserError(f"`{name}` is 0 or more, got {getattr(self, name):g}")


class Rules:
    """Says of a text why it is left out; None lets it through. Takes time linear in the text.

    >>> Rules()("a b c"), Rules()("This text ends with a token <|im_end|> of a chat template, sadly.")
    ('too few words', 'control token')
    """

    def __init__(self, config: RulesConfig | None = None) -> None:
        self.config = config or RulesConfig()

    def __call__(self, text: str) -> str | None:
        """The first rule that the text breaks."""
        config = self.config
        if config.max_characters and len(text) > config.max_characters:
            return "too long"
        if config.control_tokens and holds_control(text):
            return "control token"
        words = text.split()
        num_characters = sum(map(len, words))
        if len(words) < config.min_words and _num_words(text, words) < config.min_words:
            return "too few words"
        if num_characters == 0:
            return None
        if config.min_letters and _num_letters(text) < config.min_letters * num_characters:
            return "too few letters"
        return self._form(text, words, num_characters) or self._repetition(text, words) or self._gopher_reason(text)

    def _form(self, text: str, words: list[str], num_characters: int) -> str | None:
        config = self.config
        long_words = config.max_word_length and num_characters > config.max_word_length * len(words)
        if long_words and _num_words(text, words) * config.max_word_length < num_characters:
            return "words too long"
        most = config.max_symbols * len(words)
        if config.max_symbols and any(_num_symbols(text, sign) > most for sign in _SYMBOLS):
            return "too many symbols"
        if config.boilerplate:
            lower = text.lower()
            if any(phrase in lower for phrase in BOILERPLATE):
                return "boilerplate"
        return None

    def _repetition(self, text: str, words: list[str]) -> str | None:
        """Differs: of Gopher's nine lengths of runs one is looked at, as all take twice as long as the sentences do."""
        from datatrove.pipeline.filters.gopher_repetition_filter import find_duplicates

        config = self.config
        if config.max_repeated_lines:
            lines = [line for line in text.split("\n") if line.strip()]
            if len(set(lines)) < len(lines) and find_duplicates(lines)[1] > config.max_repeated_lines * len(text):
                return "repeated lines"
        num_runs = len(words) - _RUN + 1
        # A run with a word that is there for the first time is there for the first time: most texts need no more.
        if config.max_repeated_runs and num_runs - len(set(words)) + _RUN > config.max_repeated_runs * num_runs:
            runs = set(zip(*(words[start:] for start in range(_RUN)), strict=False))
            if num_runs - len(runs) > config.max_repeated_runs * num_runs:
                return "repeated runs of words"
        return None

    def _gopher_reason(self, text: str) -> str | None:
        for step in self._gopher if self.config.gopher else ():
            from datatrove.data import Document

            result = step.filter(Document(text=text, id=""))
            if result is not True:
                return f"gopher: {result[1].removeprefix('gopher_').replace('_', ' ')}"
        return None

    @cached_property
    def _gopher(self) -> tuple[Any, Any]:
        from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter

        from rl_think_ext.data.datatrove_steps import plain_words

        return GopherRepetitionFilter(language=plain_words()), GopherQualityFilter(language=plain_words())

    def __getstate__(self) -> dict[str, Any]:
        """The settings: the rest is made anew in a worker process."""
        return {"config": self.config}


def holds_control(text: str) -> bool:
    """Whether a text holds a thinking tag, or a token that opens a turn, ends a text or marks a prediction (F24).

    >>> holds_control("a <|startofprediction|> b"), holds_control("[INST] hi"), holds_control("if a < b and c > d")
    (True, True, False)
    """
    if not any(bracket in text for bracket in _BRACKETS) and text.isascii():
        return False
    return find_tag(text) is not None or _CONTROL.search(text) is not None


def _num_words(text: str, words: list[str]) -> int:
    """Words, where two characters of a script without spaces are one."""
    return len(words) if text.isascii() else max(len(words), len(_SPACELESS.findall(text)) // 2)


def _num_symbols(text: str, sign: str) -> int:
    """Runs of a sign: a line of hash signs is one."""
    return len(_SYMBOLS[sign].findall(text)) if sign in text else 0


def _num_letters(text: str) -> int:
    if text.isascii():
        data = text.encode()
        return len(data) - len(data.translate(None, _LETTERS))
    return sum(map(str.isalpha, text))
