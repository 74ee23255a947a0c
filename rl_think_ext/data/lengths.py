"""How long a prompt, or a prompt with its output, is in the ids of the policy's own tokenizer and template."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, cast

from rl_think_ext.data.cells import source_name
from rl_think_ext.errors import UserError
from rl_think_ext.formats import ZERO_INSTRUCTIONS, render_zero
from rl_think_ext.messages import Message
from rl_think_ext.template import Style, find_tag

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOO_LONG, NO_RENDERING = "longer than max_prompt_tokens", "chat that the template refuses"
SPECIAL = "special token in the prompt"


@dataclass(frozen=True)
class Lengths:
    """Renders chats as the policy reads them, and counts their ids.

    Styles "think" and "none" are asked for by the tokenizer's chat template, the others by the frame of formats.py.

    Raises:
        UserError: a style that needs a chat template which the tokenizer does not have.
    """

    tokenizer: PreTrainedTokenizerBase
    name: str
    style: Style = "think"
    instruction: str | None = None
    refusals: list[str] = field(default_factory=list, compare=False)  # what the template said

    def __post_init__(self) -> None:
        if self.style not in ZERO_INSTRUCTIONS and not self.tokenizer.chat_template:
            raise UserError(
                f"the tokenizer {self.name} has no chat template, which the style {self.style} needs; a raw base model "
                "is asked with the style response (or response-only: without a thought)"
            )

    def render(self, messages: Sequence[Message]) -> str | None:
        """The text that the policy reads up to where its output begins, or None where the template refuses the chat."""
        if self.style in ZERO_INSTRUCTIONS:
            return render_zero(messages, self.style, self.instruction)
        from jinja2 import TemplateError

        try:
            chat = [dict(message) for message in messages]
            return cast(str, self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        # A template is a program: what it does not expect of a chat may end it in any of these ways.
        except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            self.refusals.append(f"{type(error).__name__}: {error}"[:200])
            return None

    def holds_special(self, messages: Sequence[Message]) -> bool:
        """Whether a text of the chat would become one of the tokenizer's control tokens: a turn of its own (F25).

        Thinking tags are not meant, which some tokenizers count among them.
        """
        return any(token in message["content"] for message in messages for token in self._special)

    @cached_property
    def _special(self) -> tuple[str, ...]:
        found = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return tuple(token for token in found if not find_tag(token))

    @property
    def adds_special(self) -> bool:
        """Whether the tokenizer puts ids of its own around a rendered text, which a chat template does itself."""
        return self.style in ZERO_INSTRUCTIONS

    def count(self, texts: Sequence[str]) -> list[int]:
        """Ids of rendered texts; a chat template writes its own special tokens, for a frame the tokenizer does."""
        if not texts:
            return []
        ids = self.tokenizer(list(texts), add_special_tokens=self.adds_special, verbose=False)["input_ids"]
        return [len(row) for row in cast(list[list[int]], ids)]

    def facts(self) -> dict[str, str]:
        """The tokenizer, as it goes into a card."""
        state = self.tokenizer.backend_tokenizer.to_str() if self.tokenizer.is_fast else self.name
        template = self.tokenizer.chat_template or ""
        whole = f"{state}\0{template}".encode("utf-8", "surrogatepass")
        return {"name": source_name(self.name), "sha256": hashlib.sha256(whole).hexdigest()}


def load_lengths(name: str, style: Style, instruction: str | None = None) -> Lengths:
    """The lengths in the ids of a folder's or a hub name's tokenizer.

    Raises:
        UserError: no tokenizer there, or none for that style.
    """
    from rl_think_ext.scoring.load import load_tokenizer

    return Lengths(load_tokenizer(name), name, style, instruction)
