"""Scores of answers by a reward model, kept in the journal of a build."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rl_think_ext.data.journal import Journal, key_of
from rl_think_ext.data.sampler import fingerprint
from rl_think_ext.errors import UserError
from rl_think_ext.messages import Message
from rl_think_ext.methods.rlmt import RLMTConfig, reward_messages
from rl_think_ext.records import Parts

if TYPE_CHECKING:
    from rl_think_ext.data.rlmt_dpo import RLMTDPODataConfig

_AT_LEAST = 8  # failures that mean something
# What a score depends on.
_DECIDE = ("server_model", "dtype", "max_length", "output")


def reward_config(config: RLMTDPODataConfig) -> RLMTConfig:
    """The method's settings of the reward model, out of the builder's flags.

    Raises:
        UserError: flags that do not go together.
    """
    given: dict[str, Any] = {
        "style": config.style,
        "reward_model": config.reward_model,
        "backend": config.reward_backend,
        "server": config.reward_server,
        "server_model": config.reward_server_model,
        "api_key_env": config.reward_api_key_env,
        "max_length": config.reward_max_length,
        "max_concurrency": config.max_concurrency,
        "retries": config.retries,
    }
    try:
        return RLMTConfig(**given)
    except ValueError as error:
        raise UserError(f"the reward model: {error}") from error


class AnswerScorer:
    """Scores answers in the order that they come in; one without a score is None and counted.

    Args:
        config: The reward model's settings.
        max_failed_share: Of the answers that may have no score.
    """

    def __init__(self, config: RLMTConfig, max_failed_share: float) -> None:
        from rl_think_ext.scoring.reward_model import load_reward_model

        self.max_failed_share = max_failed_share
        self.model = load_reward_model(config)
        self.unscored: Counter[str] = Counter()
        self.num_scored, self.first_reason = 0, ""
        values = dataclasses.asdict(config)
        # Not the name alone: a reward model that was trained anew in one folder is another one.
        self._about = [fingerprint(config.reward_model), *(values[name] for name in _DECIDE)]

    def __call__(self, answers: Sequence[tuple[Sequence[Message], Parts]], journal: Journal) -> list[float | None]:
        """The score of every answer to its chat; the thought is not shown.

        Raises:
            UserError: more answers without a score than allowed.
        """
        shown = [reward_messages(messages, parts) for messages, parts in answers]
        keys = [key_of(kind="score", model=self._about, messages=messages) for messages in shown]
        unknown = [i for i, key in enumerate(keys) if key not in journal]
        for i, score in zip(unknown, self.model([shown[i] for i in unknown]) if unknown else (), strict=True):
            if score.value is None:
                self.unscored[(score.reason or "").partition(":")[0]] += 1
                self.first_reason = self.first_reason or score.reason or ""
            else:
                journal.put(keys[i], score.value)
        self.num_scored += len(answers)
        num = self.unscored.total()
        if num >= _AT_LEAST and num > self.max_failed_share * self.num_scored:
            reasons = ", ".join(f"{reason} {n}" for reason, n in self.unscored.most_common())
            raise UserError(
                f"{num} of {self.num_scored} answers got no score ({reasons}), more than max_failed_share "
                f"{self.max_failed_share:g}; the first: {self.first_reason}. Outputs and scores are kept: "
                "the same command goes on"
            )
        return [journal.get(key) if key in journal else None for key in keys]

    def counts(self) -> dict[str, float]:
        """For the card: answers shown to the reward model, and those without a score by reason."""
        return {"answers scored": self.num_scored, **{f"answers not scored, {k}": n for k, n in self.unscored.items()}}
