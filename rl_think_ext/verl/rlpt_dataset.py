"""The dataset of RLPT for verl: rows of `rl-think data rlpt`, as verl's agent loops and reward workers take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl_think_ext.data.segment_rows import REQUIRED, segment_of
from rl_think_ext.errors import UserError
from rl_think_ext.scoring.prediction_prompt import asked_of, prompt_ids
from rl_think_ext.verl import odd_rows
from rl_think_ext.verl.think_dataset import ThinkDataset

# What the reward manager builds a segment of; an address or a prompt of a judge is never among it (F42).
_SEGMENT = ("task", "context", "reference", "segment_ends", "next_segment")


class RLPTDataset(ThinkDataset):
    """Segments of texts for RLPT, as `rl-think data rlpt` or `rl-think data verl` writes them.

    The column `prompt` holds a chat, or a text that a base model goes on; in verl's own form a text stands in
    `rendered`. Args and Raises as RLPDataset.
    """

    method = "rlpt"
    loop = "rl_think_prediction"
    built_by = "rl-think data rlpt"
    shorter = "build the data with `--tokenizer` and a smaller `--max-prompt-tokens` (rl-think data rlpt)"

    def _read(self, row: dict[str, Any], where: str, own: str) -> dict[str, Any]:
        segment_of(row, where)
        return {
            "raw_prompt": _prompt(row, where),
            "reward_model": {"ground_truth": row["reference"]},
            "think_row": {"id": own, "where": where, **{name: row.get(name) for name in _SEGMENT}},
        }

    def _length(self, row: dict[str, Any], where: str) -> int:
        options = self.config.get("apply_chat_template_kwargs")
        return len(prompt_ids(_prompt(row, where), self.tokenizer, where, options))

    def _require(self) -> None:
        self.rows.require(*REQUIRED, built_by=self.built_by)

    def _odd(self, part: Any) -> Any:
        return odd_rows.failing(part, ("prompt", "rendered", *_SEGMENT), _is_unusable)

    def _column(self, part: Any) -> str:
        return "context"


def _is_unusable(row: Mapping[str, Any]) -> bool:
    try:
        _prompt(row, "")
        segment_of(row, "")
    except UserError:
        return True
    return False


def _prompt(row: Mapping[str, Any], where: str) -> str | list[dict[str, str]]:
    """What the policy is asked: a text as it is, or a chat that ends with a user's message (F32)."""
    text = row.get("rendered")
    return asked_of(row.get("prompt") if text is None else text, where)
