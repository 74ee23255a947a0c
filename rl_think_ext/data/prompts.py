"""Prompts out of any source: one form, one notion of equality, and the filters that all of RLMT's builders share."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rl_think_ext.data.card import FILE
from rl_think_ext.data.cells import Columns
from rl_think_ext.data.language import LanguageFilter
from rl_think_ext.data.lengths import SPECIAL, Lengths
from rl_think_ext.data.sources import Tally, Unusable, check_text, read_rows
from rl_think_ext.errors import UserError
from rl_think_ext.messages import Message, messages_of
from rl_think_ext.template import find_tag

# `messages` comes first: beside it, `prompt` may be a rendered text.
COLUMNS = ("messages", "prompt", "text")


@dataclass(frozen=True)
class Prompt:
    """A chat that ends with a user's message; `key` is equal for texts that differ only in form."""

    id: str
    messages: list[dict[str, str]]
    source: str
    key: str
    num_answers_off: int = 0


def columns_of(column: str | None, id_column: str, split: str) -> Columns:
    """The columns of prompts: a given one, or the first of COLUMNS that a file has."""
    first, *also = (column,) if column else COLUMNS
    return Columns(first, id_column, split, tuple(also), chat=True)


def read_prompts(
    source: str, columns: Columns, *, max_skipped_share: float = 0.2, tally: Tally | None = None
) -> Iterator[Prompt]:
    """Stream the prompts of a file, a folder, a `datasets` name, or of one split of a dataset that was built here.

    Raises:
        UserError: as read_documents of sources.py.
    """
    splits = built_splits(source)
    if splits and columns.split not in splits:
        raise UserError(f"{source} has no split `{columns.split}`; there are {', '.join(splits)}")
    source = str(splits[columns.split]) if splits else source
    rows = read_rows(source, columns, _chat, max_skipped_share=max_skipped_share, tally=tally, what="prompt")
    for row in rows:
        messages, num_off = row.value
        yield Prompt(row.id, messages, row.file, prompt_key(messages), num_off)


def built_splits(source: str) -> dict[str, Path]:
    """The files of a dataset that was built here, by split; nothing for any other source."""
    if "\0" in source or not Path(source, FILE).is_file():
        return {}
    return {path.stem: path for path in sorted(Path(source).glob("*.parquet"))}


def _chat(value: object) -> tuple[list[dict[str, str]], int]:
    """A chat up to its last user message, and how many answers stood behind it."""
    if isinstance(value, str):
        check_text(value)
    try:
        messages = messages_of(value, "the row")
    except UserError as error:
        raise Unusable("not a chat") from error
    given = len(messages)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or messages[-1]["role"] != "user":
        raise Unusable("no user message at the end")
    check_text(messages[-1]["content"])
    # All of them: a surrogate in the first message cannot be stored either.
    check_text("\n".join(message["content"] for message in messages))
    return messages, given - len(messages)


def normalised(text: str) -> str:
    """A text without what differs between copies of it: Unicode's form, case, white space.

    >>> normalised("Ｗrite  a\\nPOEM ") == normalised("write a poem")
    True
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def prompt_key(messages: Sequence[Message]) -> str:
    """32 hex digits, equal for chats that are equal when normalised."""
    parts = "\0".join(f"{message['role']}\0{normalised(message['content'])}" for message in messages)
    return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


class PromptFilter:
    """Says which prompts are used, and counts the others by reason; a prompt counts under the first that fits.

    Args:
        language: None lets every language through.
        elsewhere: Keys of prompts that must not be here, and the reason to be counted under.
        lengths: With it, a prompt that holds a control token of the policy's tokenizer is left out.
    """

    def __init__(
        self,
        language: LanguageFilter | None = None,
        elsewhere: Mapping[str, str] | None = None,
        lengths: Lengths | None = None,
    ) -> None:
        self.language, self.elsewhere, self.lengths = language, elsewhere or {}, lengths
        self.left_out: Counter[str] = Counter()
        self.num_answers_off = 0
        self._seen: set[str] = set()

    def __call__(self, prompt: Prompt) -> bool:
        """Whether the prompt is used."""
        if reason := self._reason(prompt):
            self.left_out[reason] += 1
            return False
        self._seen.add(prompt.key)
        self.num_answers_off += prompt.num_answers_off > 0
        return True

    def forget(self) -> None:
        """Begin another split: what was in the one before is in `elsewhere`, and no duplicate."""
        self._seen.clear()

    def _reason(self, prompt: Prompt) -> str:
        if any(find_tag(message["content"]) for message in prompt.messages):
            return "thinking tag in the prompt"
        if self.lengths and self.lengths.holds_special(prompt.messages):
            return SPECIAL
        if prompt.key in self._seen:
            return "duplicate prompt"
        if prompt.key in self.elsewhere:
            return self.elsewhere[prompt.key]
        asked = "\n".join(message["content"] for message in prompt.messages if message["role"] == "user")
        return "another language" if self.language and not self.language(asked) else ""
