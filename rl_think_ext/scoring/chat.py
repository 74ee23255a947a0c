"""Answers of a chat model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rl_think_ext.messages import Message
from rl_think_ext.scoring.endpoint import Endpoint, Failure

PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Reply:
    """The n answers to one conversation; `finished` is False for one that was cut at max_tokens, filtered or empty.

    Token counts are the server's, the completion's over all n; 0 where it does not say.
    """

    texts: tuple[str, ...]
    finished: tuple[bool, ...]
    prompt_tokens: int
    completion_tokens: int


def chat(
    endpoint: Endpoint,
    model: str,
    conversations: Sequence[Sequence[Message]],
    *,
    temperature: float,
    top_p: float,
    max_tokens: int,
    n: int = 1,
    on_reply: Callable[[int, Reply | Failure], None] | None = None,
    extra: Mapping[str, Any] | None = None,
    deadline: float | None = None,
) -> list[Reply | Failure]:
    """n answers to every conversation, or why there are none, in order; `on_reply(index, reply)` as they come.

    `extra` are further fields of every body; `deadline` is in seconds, where this call has fewer than the settings say.

    Raises:
        UserError: the endpoint's address, key or model is wrong (F4).
    """
    settings = {"model": model, "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "n": n}
    settings |= extra or {}
    return endpoint.ask(PATH, _Bodies(settings, conversations), partial(_read, n), on_reply=on_reply, deadline=deadline)


class _Bodies(Sequence[Mapping[str, Any]]):
    """One body a conversation, made when its turn comes: a batch need not be written before its first request goes."""

    def __init__(self, settings: Mapping[str, Any], conversations: Sequence[Sequence[Message]]) -> None:
        self.settings, self.conversations = settings, conversations

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: Any) -> Any:
        return {**self.settings, "messages": [dict(message) for message in self.conversations[index]]}


def _read(n: int, reply: Any) -> Reply | Failure:
    """A Reply out of the decoded JSON; choices go by their index (F7)."""
    choices = {choice["index"]: choice for choice in reply["choices"]}
    if len(reply["choices"]) != n or set(choices) != set(range(n)):
        return Failure(f"unreadable: {len(reply['choices'])} answers where {n} were asked for")
    texts = [choices[i]["message"]["content"] for i in range(n)]
    if not all(text is None or isinstance(text, str) for text in texts):
        return Failure("unreadable: an answer that is no text")
    if not any(texts):
        return Failure(f"no text: finish_reason {str(choices[0].get('finish_reason'))[:40]!r}")
    finished = tuple(bool(texts[i]) and choices[i].get("finish_reason") == "stop" for i in range(n))
    return Reply(tuple(text or "" for text in texts), finished, *_usage(reply))


def _usage(reply: Any) -> tuple[int, int]:
    usage = reply.get("usage")
    values = [usage.get(f"{what}_tokens") if isinstance(usage, dict) else None for what in ("prompt", "completion")]
    prompt, completion = (value if type(value) is int and value >= 0 else 0 for value in values)
    return prompt, completion
