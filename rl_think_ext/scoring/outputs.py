"""Completions as text: out of their ids, with the tags, without what only a tokenizer means."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

from rl_think_ext.scoring.preference import Output
from rl_think_ext.template import (
    CLOSE_PREDICTION,
    CLOSE_RESPONSE,
    CLOSE_TAG,
    OPEN_PREDICTION,
    OPEN_RESPONSE,
    OPEN_TAG,
)


def reader(tokenizer: Any, ends: Container[int], max_length: int | None) -> Callable[[Sequence[int]], Output]:
    """A function from a completion's ids to its text.

    Special tokens are left out as the trainer does, but never the tags: a tokenizer that counts them among its
    special ones would make a thought look like an answer. An output is finished when it ends the text or is shorter
    than the limit.
    """
    own = {
        i
        for tag in (OPEN_TAG, CLOSE_TAG, OPEN_RESPONSE, CLOSE_RESPONSE, OPEN_PREDICTION, CLOSE_PREDICTION)
        if len(ids := tokenizer.encode(tag, add_special_tokens=False)) == 1
        for i in ids
    }
    # `all_special_ids` are the named ones alone: Llama 3's end of a message, and most others, are not among them.
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    dropped = (special | set(tokenizer.all_special_ids)) - own

    def read(ids: Sequence[int]) -> Output:
        kept = [i for i in ids if i not in dropped]
        text = str(tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        finished = bool(ids) and ids[-1] in ends
        return Output(text, finished or max_length is None or len(ids) < max_length)

    return read


def cut_behind(ids: Sequence[int], stop: str, tokenizer: Any) -> list[int]:
    """The ids up to the token with which a text is there for the first time; all of them where it never is.

    What this token holds beyond the text stays: it was sampled as a whole.
    """

    def holds(num: int) -> bool:
        return stop in tokenizer.decode(ids[:num], skip_special_tokens=False)

    if not holds(len(ids)):
        return list(ids)
    low, high = 0, len(ids)
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return list(ids[:high])


def texts_of(completions: Sequence[Any]) -> list[Output]:
    """Completions that come without ids, as a trainer without a tokenizer at hand gives them.

    Raises:
        TypeError: neither text nor a list with an assistant's message of text (F32).
    """
    outputs = []
    for i, completion in enumerate(completions):
        last = completion[-1] if isinstance(completion, Sequence) and completion else completion
        text = completion if isinstance(completion, str) else last.get("content") if isinstance(last, dict) else None
        if not isinstance(text, str):
            raise TypeError(f"completion {i} of the batch holds {type(text).__name__} where text was expected")
        outputs.append(Output(text))
    return outputs
