"""Settings of TRL, templates and tokenizers that would silently make a run something other than RLMT."""

from __future__ import annotations

from typing import Any

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.scoring.chat_prompt import PROBE, chat_prompt, check_end_of_turn, check_thought
from rl_think_ext.template import OPEN_TAG
from rl_think_ext.trl import checks, host, step_checks


def check_run(trainer: Any, config: RLMTConfig, tokenizer: Any) -> bool:
    """Check a trainer's settings, sampler and chat template; whether the template opens the thought itself (hazard 18).

    Raises:
        UserError: naming the setting, the value that is needed and the reason.
    """
    args = trainer.args
    if not config.reward_model:
        raise UserError("rlmt: `reward_model:` names no model: a folder or a hub name of a reward model")
    step_checks.check_groups(trainer, "an answer")
    _check_rewards(trainer)
    _check_stop(trainer, config)
    checks.warn_all(step_checks.dropped_outputs(args) + checks.schedule(args))
    messages = _first_chat(trainer.train_dataset)
    if config.style in ("response", "response-only"):
        return False
    if messages is None:
        raise UserError(
            f"style {config.style} needs chats in the column `prompt`, and it holds text: that is the frame of a raw "
            "base model, whose styles are response and response-only"
        )
    prompt = chat_prompt(tokenizer, PROBE, **(args.chat_template_kwargs or {})).rstrip()
    check_thought(prompt, config.style, "chat_template_kwargs")
    checks.warn_all(check_end_of_turn(tokenizer, trainer.eos_token_ids))
    return prompt.endswith(OPEN_TAG)


def _first_chat(rows: Any) -> Any:
    """The first row's prompt where it is a chat; None where it is text."""
    if rows is None:
        return PROBE
    row = next(iter(rows), None)
    prompt = (row or {}).get("prompt")
    return None if isinstance(prompt, str) else prompt


def _check_rewards(trainer: Any) -> None:
    """Our own terms are missing with the score, and read what it scored."""
    from rl_think_ext.trl.rlmt_reward import PreferenceScore, ShapingTerm

    step_checks.check_others(
        trainer, PreferenceScore, "rlmt", "an answer", own=(ShapingTerm,), terms=" and its own terms"
    )


def _check_stop(trainer: Any, config: RLMTConfig) -> None:
    """What follows the response's closing tag would be trained with the reward of what stands before it."""
    if config.stop is None:
        return
    if trainer.args.mask_truncated_completions:
        raise UserError(
            f"mask_truncated_completions: true would drop every output: those that end at {config.stop} count as cut "
            "off there. Say `mask_truncated_completions: false`."
        )
    kwargs = trainer.args.generation_kwargs or {}
    if trainer.use_vllm:
        stops = kwargs.get("stop") or []
        texts = [stops] if isinstance(stops, str) else list(stops)
        if config.stop not in texts or not kwargs.get("include_stop_str_in_output"):
            raise UserError(
                f"vLLM would not stop at {config.stop}, or take it away: say `generation_kwargs: "
                f'{{stop: ["{config.stop}"], include_stop_str_in_output: true}}`.'
            )
    elif not host.stops_at_text(trainer):
        raise UserError(
            f"the stock trainer cannot stop at {config.stop} without vLLM: use `rl-think train`, or `use_vllm: true`."
        )
