"""Settings of TRL, templates, tokenizers and data that would silently make a run something other than RLPT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl_think_ext.data.segment_rows import segment_of
from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlpt import RLPTConfig, msr_share
from rl_think_ext.scoring.chat_prompt import check_end_of_turn
from rl_think_ext.scoring.prediction_prompt import asked_of, check_tags, check_template
from rl_think_ext.trl import checks, step_checks

_REFUSED: tuple[checks.Line, ...] = (("remove_unused_columns", False, "the reference would not reach the reward"),)
_WARNED: tuple[checks.Line, ...] = (
    ("beta", 0.0, "the paper has no KL term"),
    ("mask_truncated_completions", False, "outputs that were cut off are wrong, and would not be trained on"),
)


def check_run(trainer: Any, config: RLPTConfig, tokenizer: Any) -> None:
    """Check a trainer's settings, rewards, tokenizer and the first row of its data.

    Raises:
        UserError: naming the setting, the value that is needed and the reason.
    """
    from rl_think_ext.trl.rlpt_reward import PredictionScore

    step_checks.check_groups(trainer, "a prediction")
    step_checks.check_others(trainer, PredictionScore, "rlpt", "a prediction")
    check_weight(config, weighs=getattr(trainer, "weighs_tasks", False))
    check_tags(tokenizer)
    warnings = check_arguments(trainer.args)
    row = first_row(trainer.train_dataset)
    if row is not None and check_row(row, "row 0 of the dataset", tokenizer):
        warnings += check_end_of_turn(tokenizer, trainer.eos_token_ids)
    checks.warn_all(warnings)


def check_arguments(args: Any) -> list[str]:
    """The warnings for a GRPOConfig; what takes the data from the reward raises.

    Raises:
        UserError: naming the setting, the value that is needed and the reason.
    """
    checks.refuse(args, "RLPT", _REFUSED)
    return checks.differing(args, "RLPT", _WARNED) + step_checks.dropped_outputs(args) + checks.schedule(args)


def check_weight(config: RLPTConfig, *, weighs: bool) -> None:
    """A stock trainer has no place for lambda: a factor on the reward disappears in the group's own scale.

    Raises:
        UserError: saying what share of the data stands for it.
    """
    if config.msr_weight != 1.0 and not weighs:
        raise UserError(
            f"msr_weight {config.msr_weight:g} acts on the advantage, and the stock trainer has no place for it: use "
            f"`rl-think train`, or say `msr_weight: 1.0` and build the data with `rl-think data rlpt --msr-share "
            f"{msr_share(config.msr_weight):.4g}`, which stands for it."
        )


def first_row(rows: Any) -> Mapping[str, Any] | None:
    """The first row of a dataset, streamed or not; None where there is none."""
    return None if rows is None else next(iter(rows), None)


def check_row(row: Mapping[str, Any], where: str, tokenizer: Any) -> bool:
    """Check that a row is one of RLPT and can be asked; whether its prompt is a chat.

    Raises:
        UserError: a column that is missing or of another type, a prompt that cannot be asked, or a chat for a tokenizer
            without a template.
    """
    segment_of(row, where)
    if isinstance(asked_of(row.get("prompt"), where), str):
        return False
    check_template(tokenizer, where)
    return True
