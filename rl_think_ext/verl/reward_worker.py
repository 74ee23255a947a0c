"""What verl's reward managers of ours share: samples read out of their ids, scored in batches, errors kept for later.

What only a whole step can tell (who is compared with whom, who has no score) is the trainer's: here a sample gets its
raw score and all that is known of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NoReturn

from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from rl_think_ext.errors import UserError
from rl_think_ext.scoring.outputs import reader
from rl_think_ext.scoring.preference import Output
from rl_think_ext.verl import resolved
from rl_think_ext.verl.batching import Waiting
from rl_think_ext.verl.sample_info import Info, SampleForm

logger = logging.getLogger(__name__)


class ThinkRewardManager(RewardManagerBase):
    """Scores outputs one by one as verl asks for them, and in batches as they wait.

    Args:
        config: verl's whole config, with the settings of the method in it.
        tokenizer: The policy's.
        compute_score: verl's function for rules; never asked.
        reward_router_address: Where verl serves its reward model, when it does.

    Raises:
        UserError: under another trainer than the method's: it would train a sample without a score as one with the
            score 0.
    """

    form: ClassVar[SampleForm]

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any = None,
        reward_router_address: str | None = None,
        reward_model_tokenizer: Any = None,
    ) -> None:
        super().__init__(config, tokenizer, compute_score)
        method = self.form.method
        if not resolved.is_ours(config):
            raise UserError(
                f"reward.reward_manager.name: {method} gives no score to an output that cannot be scored, and verl's "
                f"own trainer has no place for that: say `trainer.v1.trainer_mode={method}`"
            )
        self.settings: Any = resolved.settings_of(config, method)
        self.router = reward_router_address
        limit = config.actor_rollout_ref.rollout.response_length
        self._read = reader(tokenizer, ends_of(config.actor_rollout_ref.model.path, tokenizer), limit)
        self._waiting: Waiting[Any, Info] = Waiting(self._score)

    async def run_single(self, data: Any) -> dict[str, Any]:
        """The raw score of one sample, NaN where it has none, and what else is known of it under the same keys.

        An error here would only cost the sample's group: it travels to the trainer as a text and ends the run there.
        """
        try:
            sample = self._sample(data[-1:][0])
            info = await asyncio.wrap_future(self._waiting.put(sample))
        except Exception as error:
            logger.exception("rl_think: a sample could not be scored")
            info = self.form.fatal(error)
        score = info[self.form.prefix + "score"]
        return {"reward_score": float("nan") if score is None else score, "reward_extra_info": dict(info)}

    @abstractmethod
    def _sample(self, item: Any) -> Any:
        """What is scored of a sample.

        Raises:
            UserError: naming the row.
        """

    @abstractmethod
    def _score(self, samples: list[Any]) -> list[Info]:
        """One batch of what was waiting, in the thread that does nothing else."""

    def _ids(self, item: Any) -> tuple[list[int], Output]:
        """The ids of a sample's prompt, and its output as text."""
        prompts, responses, seen = (item.batch[name] for name in ("prompts", "responses", "attention_mask"))
        width = prompts.shape[-1]
        prompt, response = prompts[seen[:width].bool()], responses[seen[width:].bool()]
        return prompt.tolist(), self._read(response.tolist())

    def _lengths(self, texts: list[str]) -> list[int]:
        return [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def _time_left(self, since: Iterable[float]) -> float:
        """The deadline is a sample's: what waited behind a batch that hung has so much less."""
        return max(0.0, float(self.settings.deadline) - (time.monotonic() - min(since)))


def ends_of(model: str, tokenizer: Any) -> set[int]:
    """The ids that end an output: the tokenizer's, and those of the model's generation config where it has one."""
    from transformers import GenerationConfig

    try:
        given = GenerationConfig.from_pretrained(model).eos_token_id
    except (OSError, ValueError):
        given = None
    own: Sequence[Any] = given if isinstance(given, list) else [given]
    return {int(i) for i in (*own, tokenizer.eos_token_id) if i is not None}


def refuse_call(method: str) -> NoReturn:
    """What the function of a method does that stands in `reward.custom_reward_function` for verl to see.

    Raises:
        UserError: always: nobody is to call it.
    """
    raise UserError(
        f"rl_think_ext.verl.{method}_reward.{method} is no reward by itself: it lets verl ask the reward manager, so "
        f"say `reward.reward_manager.name: {method}` with it"
    )
