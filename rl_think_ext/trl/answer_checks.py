"""Settings of TRL and rows of data that would silently make a run something other than VeriFree, RLPR or RPT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rl_think_ext.data.reader import Reader
from rl_think_ext.errors import UserError
from rl_think_ext.template import CLOSE_TAG, TagIds
from rl_think_ext.trl import checks

_BOTH: tuple[checks.Line, ...] = (
    ("importance_sampling_level", "token", "the gradient has one ratio per token"),
    ("multi_objective_aggregation", "sum_then_normalize", "the other way counts a missing reward as an average one"),
    ("remove_unused_columns", False, "the columns of the data would not reach the reward"),
)
_VERIFREE: tuple[checks.Line, ...] = (
    ("loss_type", "dr_grpo", "the gradient is a sum over a thought's tokens, then a mean over thoughts"),
    ("scale_rewards", "none", "the leave-one-out advantage is not divided by a standard deviation"),
    *_BOTH,
)
_WARNED: tuple[checks.Line, ...] = (
    ("beta", 0.0, "it has no KL term"),
    ("top_entropy_quantile", 1.0, "it takes every token of a thought"),
    ("entropy_coef", 0.0, "it has no entropy bonus"),
    ("off_policy_mask_threshold", None, "it drops whole thoughts"),
    ("mask_truncated_completions", False, "thoughts that were cut off are then not trained on"),
)


def verifree_settings(args: Any) -> list[str]:
    """The warnings for a GRPOConfig; what makes it not-VeriFree raises.

    Raises:
        UserError: naming the setting, the value that is needed and the reason.
    """
    found = _check(args, "VeriFree", _VERIFREE)
    if args.num_iterations > 1 or args.steps_per_generation > args.gradient_accumulation_steps:
        found.append(
            "num_iterations or steps_per_generation takes several steps with one batch: the answers' term keeps the "
            "probabilities of when it was sampled, and has no clipped ratio"
        )
    return found


def rlpr_settings(args: Any) -> list[str]:
    """The warnings for a GRPOConfig; what makes it not-RLPR raises.

    Raises:
        UserError: naming the setting, the value that is needed and the reason.
    """
    if args.scale_rewards == "batch":
        raise UserError(
            "scale_rewards: 'batch' is not RLPR: a prompt's rewards are compared with one another. Say "
            "`scale_rewards: group`."
        )
    return _check(args, "RLPR", _BOTH)


def rpt_settings(args: Any) -> list[str]:
    """The warnings for a GRPOConfig; what makes it not-RPT raises.

    Raises:
        UserError: naming the setting, the value that is needed and the reason.
    """
    return _check(args, "RPT", _BOTH[1:])


def check_goes_on(trainer: Any, tags: TagIds) -> None:
    """Refuse a sampler that stops at the closing tag: RPT's prediction stands behind it.

    Raises:
        UserError: saying where the stop comes from.
    """
    kwargs = trainer.args.generation_kwargs or {}
    stops = kwargs.get("stop") or []
    texts = [stops] if isinstance(stops, str) else list(stops)
    ids = [*trainer.eos_token_ids, *(kwargs.get("stop_token_ids") or [])]
    if CLOSE_TAG in texts or (tags.single and tags.close[0] in ids):
        raise UserError(
            f"sampling would stop at {CLOSE_TAG}, and RPT's prediction stands behind it: take {CLOSE_TAG} out of "
            "`eos_token_id` in the model's generation_config.json and out of `generation_kwargs`."
        )


def check_answers(rows: Any, reader: Reader, most: int) -> None:
    """Look through a dataset for reference answers that are too long, before any time is spent; a stream is not.

    Raises:
        UserError: naming the row and the setting.
    """
    if rows is None or not hasattr(rows, "__len__"):
        return
    names = [name for name in ("id", "target", "target_ids") if name in rows.column_names]
    for i, row in enumerate(rows.select_columns(names)):
        where = f"row {row.get('id') or i}"
        check_answer(reader.target(row, where), most, where)


def check_answer(target: Sequence[int], most: int, where: str) -> None:
    """Refuse a reference answer that would have to be cut: the probability of a part is another one.

    Raises:
        UserError: naming the row and the setting.
    """
    if len(target) > most:
        raise UserError(
            f"{where}: the reference answer has more than {most} tokens: leave such rows out, or raise "
            "`max_answer_tokens`"
        )


def _check(args: Any, name: str, refused: Sequence[checks.Line]) -> list[str]:
    checks.refuse(args, name, refused)
    if args.num_generations < 2:
        raise UserError("num_generations is at least 2: an output is compared with others on the same prompt.")
    if args.bf16 and str(args.device).startswith("cpu"):
        raise UserError("bf16 on a CPU (TRL's default) rounds the rewards away: say `bf16: false`.")
    return checks.differing(args, name, _WARNED) + _vllm(args) + checks.schedule(args)


def _vllm(args: Any) -> list[str]:
    if not args.use_vllm or not args.vllm_importance_sampling_correction:
        return []
    mode = args.vllm_importance_sampling_mode
    if not mode.startswith("sequence"):
        return []
    return [
        f"vllm_importance_sampling_correction is on ({mode}): it drops whole long thoughts. Say "
        "`vllm_importance_sampling_mode: token_truncate`, or `vllm_importance_sampling_correction: false`."
    ]
