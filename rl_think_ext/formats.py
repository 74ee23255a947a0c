"""What asks for RLMT's formats: the frame around a chat for a raw base model, and the words for a teacher.

A model that was warmed up needs none of it: its own chat template asks, and its fine-tuning data showed the form. The
frame exists as a text and as a Jinja template for a tokenizer, so that a base model is never copied to change a file.
Paper: RLMT (arXiv 2509.20357), section "zero"; the words are this package's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_think_ext.errors import UserError
from rl_think_ext.messages import Message
from rl_think_ext.template import (
    CLOSE_QUERY,
    CLOSE_RESPONSE,
    CLOSE_TAG,
    OPEN_QUERY,
    OPEN_RESPONSE,
    OPEN_TAG,
    Style,
    find_tag,
)

_QUERY = f"The question stands between {OPEN_QUERY} and {CLOSE_QUERY}."

ZERO_INSTRUCTIONS: dict[str, str] = {
    "response": (
        f"Answer the question below. {_QUERY} Think before you answer: plan, try out and check what a good answer has "
        f"to contain, and write all of that between {OPEN_TAG} and {CLOSE_TAG}. Then write the answer itself, in full "
        f"and for a reader who has not seen your thoughts, between {OPEN_RESPONSE} and {CLOSE_RESPONSE}. Your output "
        f"has exactly this form: {OPEN_TAG} your thoughts {CLOSE_TAG} {OPEN_RESPONSE} your answer {CLOSE_RESPONSE}"
    ),
    "response-only": (
        f"Answer the question below. {_QUERY} Write the answer, in full, between {OPEN_RESPONSE} and {CLOSE_RESPONSE}, "
        f"and nothing before it. Your output has exactly this form: {OPEN_RESPONSE} your answer {CLOSE_RESPONSE}"
    ),
}

TEACHER_INSTRUCTION = (
    "You show how to think before answering. For the message you are given, first write the plan that an expert would "
    f"make between {OPEN_TAG} and {CLOSE_TAG}: what is asked, what a good answer needs, what to avoid, in what order. "
    f"Then write the answer itself between {OPEN_RESPONSE} and {CLOSE_RESPONSE}; it must stand by itself and not speak "
    "of the plan. Use each of these four tags once, write nothing outside of them, and write in English."
)


def zero_instruction(style: Style, given: str | None = None) -> str:
    """The words that ask a raw base model for a style, or the ones that were given in their place.

    Raises:
        UserError: a style that a chat template asks for, or given words that are blank.
    """
    if style not in ZERO_INSTRUCTIONS:
        raise UserError(f"style {style} has no instruction of its own: the model's chat template asks for it")
    if given is not None and not given.strip():
        raise UserError("the instruction is empty")
    return ZERO_INSTRUCTIONS[style] if given is None else given.rstrip("\n")


def read_instruction(path: str | None) -> str | None:
    """The words in a file, or None without a file.

    Raises:
        UserError: a file that cannot be read as text, or that is blank.
    """
    if path is None:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"could not read the instruction file {path}: {error}") from error
    if not text.strip():
        raise UserError(f"the instruction file {path} is empty")
    return text


def render_zero(messages: Sequence[Message], style: Style, instruction: str | None = None) -> str:
    """The prompt of a raw base model for a chat, up to where its answer begins.

    Raises:
        UserError: a style without such a frame, or a tag in the chat, which would break it (F24).

    >>> print(render_zero([{"role": "user", "content": "2 + 2?"}], "response-only", "Answer."))
    User: Answer.
    <query>2 + 2?</query>
    Assistant:
    """
    words, parts, asked = zero_instruction(style, instruction), [], False
    for message in messages:
        role, content = message["role"], message["content"]
        if tag := find_tag(content):
            raise UserError(f"a {role} message holds the tag {tag!r}: leave this row out (`rl-think data rlmt` does)")
        if role == "system":
            parts.append(f"{content}\n\n")
        elif role == "user":
            lead = "" if asked else f"{words}\n"
            parts.append(f"User: {lead}{OPEN_QUERY}{content}{CLOSE_QUERY}\n")
            asked = True
        else:
            parts.append(f"Assistant:{content}\n")
    return "".join(parts) + "Assistant:"


def zero_chat_template(style: Style, instruction: str | None = None, *, tokenizer: Any = None) -> str:
    """The same frame as a Jinja chat template, for `tokenizer.chat_template` (it does not look for tags).

    Of a text a tokenizer writes the BOS, of a chat its template has to: with a `tokenizer` that begins its texts with
    one this template does, so that both ways give the same ids.

    Raises:
        UserError: a style without such a frame.
    """
    words = _literal(zero_instruction(style, instruction) + "\n")
    begins = tokenizer is not None and list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]
    return ("{{- bos_token -}}" if begins else "") + (
        "{%- set asked = namespace(yet=false) -%}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'system' -%}{{ message['content'] + '\\n\\n' }}"
        "{%- elif message['role'] == 'user' -%}"
        f"{{{{ 'User: ' + ('' if asked.yet else {words}) + '{OPEN_QUERY}' }}}}"
        f"{{{{ message['content'] + '{CLOSE_QUERY}\\n' }}}}"
        "{%- set asked.yet = true -%}"
        "{%- else -%}{{ 'Assistant:' + message['content'] + '\\n' }}"
        "{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}"
    )


def _literal(text: str) -> str:
    """A Jinja string: what is written there comes out as it is, whatever marks it holds (F28)."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"
