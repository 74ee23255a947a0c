"""The policy's prompt of a row of RLPT, a chat or a text, and tokenizers through which no prediction can be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl_think_ext.errors import UserError
from rl_think_ext.messages import messages_of
from rl_think_ext.methods.rlpt import extract_prediction
from rl_think_ext.scoring.chat_prompt import templated_ids
from rl_think_ext.scoring.outputs import reader
from rl_think_ext.template import CLOSE_PREDICTION, OPEN_PREDICTION

# What a prediction is read out of: words, a tag that is opened, and one that is closed.
_PROBE = f"So {OPEN_PREDICTION} It rained. {CLOSE_PREDICTION}"


def asked_of(prompt: Any, where: str) -> str | list[dict[str, str]]:
    """What a row's column `prompt` asks: a text as it is, or a chat that ends with a user's message.

    Args:
        where: The words that name the row in an error.

    Raises:
        UserError: anything else (F32).
    """
    if isinstance(prompt, str):
        return prompt
    chat = messages_of(prompt, f"{where}, column `prompt`")
    if chat[-1]["role"] != "user":
        raise UserError(f"{where}, column `prompt`: the chat ends with the {chat[-1]['role']}'s message")
    return chat


def prompt_ids(prompt: Any, tokenizer: Any, where: str, options: Mapping[str, Any] | None = None) -> list[int]:
    """The ids of a policy's prompt: a chat in the policy's template, or a text as it is, which a base model goes on.

    Args:
        prompt: What the column `prompt` holds.
        where: The words that name the row in an error.
        options: The chat template's own options.

    Raises:
        UserError: neither a text nor a chat, no chat template for one, or one that refuses it (F32).
    """
    if isinstance(prompt, str):
        return list(tokenizer(text=prompt)["input_ids"])
    chat = messages_of(prompt, f"{where}, column `prompt`")
    check_template(tokenizer, where)
    return templated_ids(tokenizer, chat, where, dict(options or {}))


def check_template(tokenizer: Any, where: str) -> None:
    """Refuse a tokenizer that cannot write the chat of a row.

    Raises:
        UserError: no chat template.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"{where}: column `prompt` is a chat, and the policy's tokenizer has no chat template: build the data with "
            "`rl-think data rlpt --form text`, or give the tokenizer one (a cold start brings that of its fine-tuning)"
        )


def check_tags(tokenizer: Any) -> None:
    """Refuse a tokenizer through which no prediction can be read: one that cannot write the tags as they are.

    Raises:
        UserError: showing what becomes of them.
    """
    ids = tokenizer.encode(_PROBE, add_special_tokens=False)
    text = reader(tokenizer, (), None)(ids).text
    if extract_prediction(text) is None:
        raise UserError(
            f"the tags do not survive this tokenizer: {_PROBE!r} becomes {text!r}. Give it {OPEN_PREDICTION} and "
            f"{CLOSE_PREDICTION} as tokens of their own (tokenizer.add_tokens), and the model rows for them"
        )
