"""Chats as data sets hold them, made into one form: a list of roles and texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rl_think_ext.errors import UserError

Message = Mapping[str, str]
ROLES = ("system", "user", "assistant")


def messages_of(value: object, where: str) -> list[dict[str, str]]:
    """A chat out of a string (one user message) or of role and content mappings (F32).

    A content may be text, nothing, or a list of text blocks, which are put together; further keys are dropped.

    Args:
        value: What a row holds.
        where: The words that name its place in an error.

    Raises:
        UserError: anything else: images, tool calls, other roles, no message at all.

    >>> messages_of("2 + 2?", "row 1")
    [{'role': 'user', 'content': '2 + 2?'}]
    >>> messages_of([{"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}], "row 1")
    [{'role': 'user', 'content': '2 + 2?'}]
    """
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, Sequence) or not value:
        raise UserError(f"{where}: expected a chat (a text, or a list of role and content), got {_kind(value)}")
    return [_message(message, f"{where}, message {number}") for number, message in enumerate(value, start=1)]


def _message(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or "role" not in value:
        raise UserError(f"{where}: expected `role` and `content`, got {_kind(value)}")
    role = value["role"]
    if role not in ROLES:
        raise UserError(f"{where}: the role {role!r} is none of {', '.join(ROLES)}: tool calls cannot be used here")
    if value.get("tool_calls"):
        raise UserError(f"{where}: tool calls cannot be used here")
    return {"role": str(role), "content": _text(value.get("content"), where)}


def _text(content: object, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise UserError(f"{where}: `content` is a text or a list of text blocks, got {_kind(content)}")
    texts = []
    for block in content:
        text = block.get("text") if isinstance(block, Mapping) and block.get("type", "text") == "text" else None
        if not isinstance(text, str):
            found = block.get("type") if isinstance(block, Mapping) else None
            raise UserError(f"{where}: a block of `content` is {found or _kind(block)}; only text can be used here")
        texts.append(text)
    return "".join(texts)


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(str, value)) or 'nothing in it'}"
    return "an empty list" if value == [] else type(value).__name__
