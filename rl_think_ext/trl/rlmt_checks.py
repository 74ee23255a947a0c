"""Settings of TRL, templates and tokenizers that would silently make a run something other than RLMT."""

from __future__ import annotations

from typing import Any

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.template import CLOSE_TAG, OPEN_TAG
from rl_think_ext.trl import checks, host

_PROBE = [{"role": "user", "content": "1 + 1 ="}]


def check_run(trainer: Any, config: RLMTConfig, tokenizer: Any) -> bool:
    """Check a trainer's settings, sampler and chat template; whether the template opens the thought itself (hazard 18).

    Raises:
        UserError: naming the setting, the value that is needed and the reason.
    """
    args = trainer.args
    if not config.reward_model:
        raise UserError("rlmt: `reward_model:` names no model: a folder or a hub name of a reward model")
    if args.num_generations < 2:
        raise UserError("num_generations is at least 2: an answer is compared with others to the same prompt.")
    if args.multi_objective_aggregation == "normalize_then_sum" and len(trainer.reward_funcs) > 1:
        raise UserError(
            "multi_objective_aggregation: normalize_then_sum counts a missing score as an average one. Say "
            "`multi_objective_aggregation: sum_then_normalize`."
        )
    _check_rewards(trainer)
    _check_stop(trainer, config)
    checks.warn_all(_vllm(args) + checks.schedule(args))
    messages = _first_chat(trainer.train_dataset)
    if config.style in ("response", "response-only"):
        return False
    if messages is None:
        raise UserError(
            f"style {config.style} needs chats in the column `prompt`, and it holds text: that is the frame of a raw "
            "base model, whose styles are response and response-only"
        )
    prompt = chat_prompt(tokenizer, _PROBE, **(args.chat_template_kwargs or {})).rstrip()
    _check_thought(prompt, config.style)
    checks.warn_all(check_end_of_turn(tokenizer, trainer.eos_token_ids))
    return prompt.endswith(OPEN_TAG)


def _check_thought(prompt: str, style: str) -> None:
    """Refuse a template that thinks where the style does not, or has thought before the policy begins.

    Raises:
        UserError: naming the end of the prompt and what to do.
    """
    wrong = {"none": OPEN_TAG, "think": CLOSE_TAG}[style]
    if prompt.endswith(wrong):
        what = "what the policy thinks there would be scored as its answer" if style == "none" else "no thought follows"
        raise UserError(
            f"style {style}: the chat template ends its prompt with {prompt[-40:]!r}, so {what}. Say "
            f"`chat_template_kwargs: {{enable_thinking: {str(style == 'think').lower()}}}` where the template knows "
            "it, or give the policy's tokenizer another template."
        )


def chat_prompt(tokenizer: Any, messages: Any, **options: Any) -> str:
    """A chat in the policy's own template, up to where the answer begins.

    Raises:
        UserError: a tokenizer without a chat template.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "the policy's tokenizer has no chat template: a raw base model takes `style: response` (or response-only), "
            "a warm start brings the template of its fine-tuning (`chat_template_path:` there)"
        )
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **options))


def check_end_of_turn(tokenizer: Any, ends: Any) -> list[str]:
    """A warning where an assistant's turn ends with a token at which sampling would not end."""
    said = [*_PROBE, {"role": "assistant", "content": "2"}]
    text = str(tokenizer.apply_chat_template(said, tokenize=False))
    behind = text[text.rindex("2") + 1 :].strip() if "2" in text else ""
    ids = tokenizer.encode(behind, add_special_tokens=False) if behind else []
    if not ids or ids[0] in ends:
        return []
    return [
        f"the chat template ends an assistant's turn with {behind!r}, and sampling does not end there: every output "
        f"runs into the length limit. Add {ids[0]} to `eos_token_id` in the model's generation_config.json"
    ]


def _first_chat(rows: Any) -> Any:
    """The first row's prompt where it is a chat; None where it is text."""
    if rows is None:
        return _PROBE
    row = next(iter(rows), None)
    prompt = (row or {}).get("prompt")
    return None if isinstance(prompt, str) else prompt


def _check_rewards(trainer: Any) -> None:
    """A stock trainer takes a missing score for 0 beside other rewards; our own terms are missing with it."""
    from rl_think_ext.trl.rlmt_reward import PreferenceScore, ShapingTerm

    own = [isinstance(reward, PreferenceScore | ShapingTerm) for reward in trainer.reward_funcs]
    if not all(own) and not getattr(trainer, "forms_advantage", False):
        raise UserError(
            "beside other rewards the stock trainer counts an answer without a score as a score of 0: use `rl-think "
            "train` (RLMTTrainer), or rl_think_ext.trl.rlmt and its own terms (rlmt_format, …) alone."
        )
    scores = [isinstance(reward, PreferenceScore) for reward in trainer.reward_funcs]
    if scores[0] is False or sum(scores) > 1:
        raise UserError("reward_funcs: rl_think_ext.trl.rlmt stands first, and once: its terms read what it scored")


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


def _vllm(args: Any) -> list[str]:
    if not args.use_vllm or not args.vllm_importance_sampling_correction:
        return []
    mode = args.vllm_importance_sampling_mode
    if not mode.startswith("sequence"):
        return []
    return [
        f"vllm_importance_sampling_correction is on ({mode}): it drops whole long outputs. Say "
        "`vllm_importance_sampling_mode: token_truncate`, or `vllm_importance_sampling_correction: false`."
    ]
