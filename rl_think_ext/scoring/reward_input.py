"""What the reward model reads: a chat and its answer as ids of the reward model's own chat template.

The ids are those of the whole rendered text, and the template alone decides on a BOS: the tokenizer adds nothing.
Contents stay ordinary text, also where they spell a control token (F25). What is too long loses ids of the prompt's
contents from the left, never of the answer and never of the template's own frame: earlier messages go first, then the
last one before the answer, system messages at the very end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rl_think_ext.errors import UserError
from rl_think_ext.messages import Message, messages_of
from rl_think_ext.records import Score
from rl_think_ext.scoring.reward_tokens import Span, Tokens, control_ids, cut, tokens_of, touches_control

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER_TOO_LONG = "answer longer than the reward model"
# Letters and digits only, so that no template trims, splits or escapes it. It never stands beside real contents.
_MARK = "rlthinkcontent{}end"
_MARKS = re.compile("rlthinkcontent([0-9]+)end")
# transformers writes 1e30 where a tokenizer knows no limit.
_NO_LIMIT = 10**9


@dataclass(frozen=True)
class RewardInput:
    """Ids of one conversation, and how many ids its prompt lost."""

    ids: tuple[int, ...]
    num_cut: int


class RewardTemplate:
    """Writes conversations as the reward model reads them.

    Args:
        tokenizer: The reward model's, with its chat template; a fast one, which knows where each id came from.
        max_length: The ids that the reward model takes.

    Raises:
        UserError: no chat template, one that cannot be used or that leaves out the answer, or a slow tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self._frames: dict[tuple[tuple[str, bool], ...], list[str | int]] = {}
        self._control = control_ids(tokenizer)
        name = getattr(tokenizer, "name_or_path", "") or "the reward model"
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                f"`{name}`: its tokenizer has no `chat_template`, so nobody can tell how it wants to read a chat; take "
                "a reward model that ships one, or write `chat_template.jinja` beside its tokenizer"
            )
        if not tokenizer.is_fast:
            raise UserError(f"`{name}`: a slow tokenizer; install `tokenizers` and save its `tokenizer.json` beside it")
        try:
            frame = self._new_frame([{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}])
        except _UnscorableError as error:
            raise UserError(f"`{name}`: its chat template cannot write a question and its answer: {error}") from error
        if 1 not in frame:
            raise UserError(f"`{name}`: its chat template leaves out the assistant's message, which is to be scored")

    def text(self, messages: Sequence[Message]) -> str:
        """The whole conversation as the template writes it, for people; before anything is cut.

        Raises:
            ValueError: the template refuses it.
        """
        return self._render(_checked(messages))

    def decode(self, given: RewardInput) -> str:
        """What is left of a conversation after the cut, for people."""
        return str(self.tokenizer.decode(list(given.ids), skip_special_tokens=False))

    def encode(self, messages: Sequence[Message]) -> RewardInput | Score:
        """The ids of a conversation that ends with the assistant's answer, at most `max_length` of them.

        An empty answer is written like any other: whether it has a score is decided before.

        Returns:
            The input, or an unscorable Score: an answer that does not fit, a conversation that the template refuses or
            of which it would change the answer, text that is not Unicode.

        Raises:
            UserError: no conversation: no answer at the end, or contents that are no text (F32).
        """
        try:
            written = self._write(_checked(messages))
            tokens = self._tokens(written)
        except _UnscorableError as error:
            return Score.unscorable(str(error))
        excess = len(tokens.ids) - self.max_length
        if excess <= 0:
            return RewardInput(tuple(tokens.ids), 0)
        roles = [message["role"] for message in messages[:-1]]
        order = sorted(range(len(roles)), key=lambda i: (roles[i] == "system", i))
        gone = cut(tokens, written.spans, order, excess)
        if len(gone) < excess:
            return Score.unscorable(ANSWER_TOO_LONG)
        return RewardInput(tuple(t for i, t in enumerate(tokens.ids) if i not in gone), len(gone))

    def _write(self, messages: list[dict[str, str]]) -> _Written:
        """The rendered text, and where in it each message's content stands.

        Raises:
            _UnscorableError: refused, not Unicode, or an answer that is not written as it is but for its ends.
        """
        text = self._render(messages)
        contents = [message["content"] for message in messages]
        key = tuple((message["role"], bool(message["content"])) for message in messages)
        if key not in self._frames:
            self._frames[key] = self._new_frame(messages)
        spans = _find(text, self._frames[key], contents)
        if spans is None:
            # A frame may hold the date, and a template may take old thoughts out of a chat: look again.
            frame = self._frames[key] = self._new_frame(messages)
            spans = _find(text, frame, self._as_written(messages, frame))
        if spans is None:
            raise _UnscorableError("changed by the reward model's chat template")
        return _Written(text, tuple(spans))

    def _as_written(self, messages: list[dict[str, str]], frame: list[str | int]) -> list[str]:
        """The contents as the template writes each among marks; the answer's as it is."""
        contents = [message["content"] for message in messages]
        for i in {piece for piece in frame if isinstance(piece, int)} - {len(messages) - 1}:
            text = self._render([message if j == i else _marked(message, j) for j, message in enumerate(messages)])
            at = frame.index(i)
            before, after = _joined(frame[:at]), _joined(frame[at + 1 :])
            if text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after):
                contents[i] = text[len(before) : len(text) - len(after)]
        return contents

    def _new_frame(self, messages: list[dict[str, str]]) -> list[str | int]:
        """What the template writes around the contents: text, index of a message, text, ..., text."""
        pieces = _MARKS.split(self._render([_marked(message, i) for i, message in enumerate(messages)]))
        return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)]

    def _render(self, messages: list[dict[str, str]]) -> str:
        import jinja2

        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False)
            str(text).encode()
        except UnicodeEncodeError as error:
            raise _UnscorableError("text with lone surrogates") from error
        # Beside its own refusals a template meets what it did not expect, as Python errors.
        except (jinja2.TemplateError, TypeError, LookupError, AttributeError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise _UnscorableError(f"refused by the reward model's chat template: {reason}") from error
        return str(text)

    def _tokens(self, written: _Written) -> Tokens:
        tokens = tokens_of(self.tokenizer, written.text)
        if touches_control(tokens, written, self._control):
            tokens = tokens_of(self.tokenizer, written.text, written.spans)
            if touches_control(tokens, written, self._control):
                raise _UnscorableError("control tokens that cannot be written as text")
        return tokens


class _Written(NamedTuple):
    text: str
    spans: tuple[Span, ...]


class _UnscorableError(ValueError):
    """Its text is the reason."""


def max_length_of(name: str, config: Any, tokenizer: Any, explicit: int | None = None) -> int:
    """The ids that a reward model takes: as the user says, or the least of what its config and tokenizer say.

    Raises:
        UserError: nobody says, or the user says more than there are positions.
    """
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = getattr(text_config, "max_position_embeddings", None)
    if explicit is not None:
        if explicit < 1 or (positions and explicit > positions):
            raise UserError(f"`max_length: {explicit}`: `{name}` takes between 1 and {positions or 'many'} tokens")
        return explicit
    said = [int(n) for n in (positions, getattr(tokenizer, "model_max_length", None)) if n and 0 < n < _NO_LIMIT]
    if not said:
        raise UserError(f"`{name}` does not say how many tokens it takes: set `max_length`")
    return min(said)


def _checked(messages: Sequence[Message]) -> list[dict[str, str]]:
    checked = messages_of(messages, "a conversation for the reward model")
    if len(checked) < 2 or checked[-1]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in checked)
        raise UserError(f"a conversation for the reward model ends with the assistant's answer, got {roles}")
    return checked


def _marked(message: dict[str, str], i: int) -> dict[str, str]:
    # An empty content stays empty: a template may ask for that.
    return message | {"content": _MARK.format(i) if message["content"] else ""}


def _joined(pieces: list[str | int]) -> str:
    return "".join(piece if isinstance(piece, str) else _MARK.format(piece) for piece in pieces)


def _find(text: str, frame: list[str | int], contents: list[str]) -> list[Span] | None:
    """Where the contents stand in a text that is the frame around them, as they are or trimmed; None if it is not."""
    at, spans = 0, []
    for number, piece in enumerate(frame):
        if isinstance(piece, str):
            if not text.startswith(piece, at):
                return None
            at += len(piece)
            continue
        after, given = str(frame[number + 1]), contents[piece]
        for form in (given, given.strip(), given.lstrip(), given.rstrip()):
            if text.startswith(form, at) and text.startswith(after, at + len(form)):
                spans.append(Span(at, at + len(form), piece))
                at += len(form)
                break
        else:
            return None
    return spans if at == len(text) else None
