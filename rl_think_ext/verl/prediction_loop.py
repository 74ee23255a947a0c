"""The agent loop `rl_think_prediction`: a row of RLPT as the policy reads it, one output, to its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl_think_ext.scoring.prediction_prompt import prompt_ids
from rl_think_ext.verl.chat_loop import ScoredLoop
from rl_think_ext.verl.rlpt_sample import FORM
from rl_think_ext.verl.sample_info import plain


class PredictionLoop(ScoredLoop):
    """A chat in the policy's template, or a text that a base model goes on."""

    form = FORM

    def ids(self, row: Mapping[str, Any], where: str) -> list[int]:
        """See prompt_ids."""
        return prompt_ids(plain(row.get("raw_prompt")), self.tokenizer, where, self.options)
