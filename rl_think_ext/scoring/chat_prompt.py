"""The policy's prompt for a chat, in its own template or in the frame of a raw base model, and what spoils one."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from rl_think_ext.errors import UserError
from rl_think_ext.formats import read_instruction, zero_chat_template
from rl_think_ext.messages import Message
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.template import CLOSE_TAG, OPEN_TAG, find_tag

PROBE = [{"role": "user", "content": "1 + 1 ="}]


def chat_prompt(tokenizer: Any, messages: Any, **options: Any) -> str:
    """A chat in the policy's own template, up to where the answer begins.

    Raises:
        UserError: a tokenizer without a chat template.
    """
    check_template(tokenizer)
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **options))


def check_template(tokenizer: Any) -> None:
    """Refuse a tokenizer that cannot write a chat.

    Raises:
        UserError: no chat template.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "the policy's tokenizer has no chat template: a raw base model takes `style: response` (or response-only), "
            "a warm start brings the template of its fine-tuning (`chat_template_path:` there)"
        )


def prompt_ids(
    chat: Sequence[Message],
    config: RLMTConfig,
    tokenizer: Any,
    where: str,
    options: Mapping[str, Any] | None = None,
    *,
    prefill: bool = False,
) -> list[int]:
    """The ids of a policy's prompt for a chat.

    Args:
        where: The words that name the row in an error.
        options: The chat template's own options; the frame of a raw base model has none.
        prefill: End with the opening tag, unless the template does so itself.

    Raises:
        UserError: no chat template, one that refuses the chat, or a tag that the frame would not survive (F24).
    """
    if config.stop:
        _check_tags(chat, where)
        words = read_instruction(config.instruction_file)
        given: dict[str, Any] = {"chat_template": zero_chat_template(config.style, words, tokenizer=tokenizer)}
    else:
        check_template(tokenizer)
        given = dict(options or {})
    ids = templated_ids(tokenizer, chat, where, given)
    if not prefill:
        return ids
    tail = str(tokenizer.decode(ids[-len(OPEN_TAG) :], skip_special_tokens=False))
    opened = tail.rstrip().endswith(OPEN_TAG)
    return ids if opened else [*ids, *tokenizer.encode(OPEN_TAG, add_special_tokens=False)]


def templated_ids(tokenizer: Any, chat: Sequence[Message], where: str, options: Mapping[str, Any]) -> list[int]:
    """The ids of a chat in a template, up to where the answer begins.

    Raises:
        UserError: a template that refuses the chat, named with the row.
    """
    from jinja2 import TemplateError

    try:
        return list(
            tokenizer.apply_chat_template(
                [dict(message) for message in chat],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **options,
            )
        )
    # Beside its own refusals a template meets what it did not expect, as Python errors.
    except (TemplateError, TypeError, LookupError, AttributeError, ValueError) as error:
        raise UserError(f"{where}: the policy's chat template refuses this chat: {error}") from error


def _check_tags(chat: Sequence[Message], where: str) -> None:
    for message in chat:
        if tag := find_tag(message["content"]):
            raise UserError(
                f"{where}: a {message['role']} message holds the tag {tag!r}, which the frame of a raw base model "
                "would not survive: leave the row out (`rl-think data rlmt` does)"
            )


def check_thought(prompt: str, style: str, options_key: str) -> None:
    """Refuse a template that thinks where the style does not, or has thought before the policy begins.

    Args:
        prompt: A chat in the template, without the white space at its end.
        style: think or none.
        options_key: The setting with the template's own options.

    Raises:
        UserError: naming the end of the prompt and what to do.
    """
    wrong = {"none": OPEN_TAG, "think": CLOSE_TAG}[style]
    if prompt.endswith(wrong):
        what = "what the policy thinks there would be scored as its answer" if style == "none" else "no thought follows"
        raise UserError(
            f"style {style}: the chat template ends its prompt with {prompt[-40:]!r}, so {what}. Say "
            f"`{options_key}: {{enable_thinking: {str(style == 'think').lower()}}}` where the template knows "
            "it, or give the policy's tokenizer another template."
        )


def check_end_of_turn(tokenizer: Any, ends: Container[int]) -> list[str]:
    """A warning where an assistant's turn ends with a token at which sampling would not end."""
    said = [*PROBE, {"role": "assistant", "content": "2"}]
    text = str(tokenizer.apply_chat_template(said, tokenize=False))
    behind = text[text.rindex("2") + 1 :].strip() if "2" in text else ""
    ids = tokenizer.encode(behind, add_special_tokens=False) if behind else []
    if not ids or ids[0] in ends:
        return []
    return [
        f"the chat template ends an assistant's turn with {behind!r}, and sampling does not end there: every output "
        f"runs into the length limit. Add {ids[0]} to `eos_token_id` in the model's generation_config.json"
    ]
