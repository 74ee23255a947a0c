"""RLMT's reward for verl: the reward manager `rlmt`, which gives each sample a reward model's score of its answer.

It needs of a sample its ids and the raw chat. What only a whole step can tell (the floor, noise, who has no score) is
the trainer's: here a sample gets its raw score and all that is known of it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NoReturn

from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.scoring.outputs import reader
from rl_think_ext.scoring.preference import Output, PreferenceScorer
from rl_think_ext.scoring.reward_model import RewardModel, load_reward_model
from rl_think_ext.template import OPEN_TAG
from rl_think_ext.verl import resolved
from rl_think_ext.verl.batching import Waiting
from rl_think_ext.verl.rlmt_sample import PREFIX, Info, chat_of, fatal, infos_of

logger = logging.getLogger(__name__)

# Ids at the end of a prompt among which an opening tag is looked for; a tag is at most as many ids as characters.
_TAIL = 16


@dataclass(frozen=True)
class Sample:
    """One output with the chat that it answers; `prefilled` says that its prompt ends with the opening tag."""

    chat: list[dict[str, str]]
    output: Output
    prefilled: bool
    since: float = field(default_factory=time.monotonic, compare=False)


class RLMTRewardManager(RewardManagerBase):
    """Scores answers with a reward model: in this process on the CPU, behind a server, or in verl's own service.

    Args:
        config: verl's whole config, with the settings of RLMT in it.
        tokenizer: The policy's.
        compute_score: verl's function for rules; never asked.
        reward_router_address: Where verl serves its reward model, when it does.

    Raises:
        UserError: under another trainer than `rlmt`: it would train a sample without a score as one with the score 0.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any = None,
        reward_router_address: str | None = None,
        reward_model_tokenizer: Any = None,
    ) -> None:
        super().__init__(config, tokenizer, compute_score)
        if not resolved.is_ours(config):
            raise UserError(
                "reward.reward_manager.name: rlmt gives no score to an output that cannot be scored, and verl's own "
                "trainer has no place for that: say `trainer.v1.trainer_mode=rlmt`"
            )
        self.settings: RLMTConfig = resolved.settings_of(config, "rlmt")
        self.router = reward_router_address
        limit = config.actor_rollout_ref.rollout.response_length
        self._read = reader(tokenizer, ends_of(config.actor_rollout_ref.model.path, tokenizer), limit)
        self._waiting: Waiting[Sample, Info] = Waiting(self._score)
        self._noise = math.nan

    async def run_single(self, data: Any) -> dict[str, Any]:
        """The raw score of one sample, NaN where it has none, and what else is known of it under the same keys.

        An error here would only cost the sample's group: it travels to the trainer as a text and ends the run there.
        """
        try:
            sample = self._sample(data[-1:][0])
            info = await asyncio.wrap_future(self._waiting.put(sample))
        except Exception as error:
            logger.exception("rl_think: a sample could not be scored")
            info = fatal(error)
        score = info[PREFIX + "score"]
        return {"reward_score": float("nan") if score is None else score, "reward_extra_info": dict(info)}

    @cached_property
    def scorer(self) -> PreferenceScorer:
        """Made when the first sample is there, so that what is wrong reaches the trainer.

        Raises:
            UserError: a reward model that cannot be used.
        """

        def lengths(texts: list[str]) -> list[int]:
            return [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

        return PreferenceScorer(self.settings, reward_model_of(self.config, self.settings, self.router), lengths)

    def _sample(self, item: Any) -> Sample:
        prompts, responses, seen = (item.batch[name] for name in ("prompts", "responses", "attention_mask"))
        width = prompts.shape[-1]
        prompt, response = prompts[seen[:width].bool()], responses[seen[width:].bool()]
        output = self._read(response.tolist())
        return Sample(chat_of(item.non_tensor_batch), output, is_prefilled(prompt.tolist(), self.tokenizer))

    def _score(self, samples: list[Sample]) -> list[Info]:
        """One batch of what was waiting, in the thread that does nothing else."""
        from rl_think_ext.scoring.served import ServedRewardModel

        model, found = self.scorer.model, dict[int, Info]()
        if isinstance(model, ServedRewardModel):
            # The deadline is a sample's: what waited behind a batch that hung has so much less.
            waited = time.monotonic() - min(sample.since for sample in samples)
            model.time_left = max(0.0, self.settings.deadline - waited)
        for prefilled in (False, True):
            rows = [i for i, sample in enumerate(samples) if sample.prefilled is prefilled]
            if rows:
                chats, said = [samples[i].chat for i in rows], [samples[i].output for i in rows]
                scored = self.scorer(chats, said, prefilled=prefilled)
                # A call in which nothing was scored twice knows the noise of the last one that was.
                self._noise = scored.stats["noise"] if scored.stats.get("noise", math.nan) >= 0 else self._noise
                scored = replace(scored, stats={**scored.stats, "noise": self._noise})
                found |= zip(rows, infos_of(scored), strict=True)
        return [found[i] for i in range(len(samples))]


def is_prefilled(prompt: Sequence[int], tokenizer: Any) -> bool:
    """Whether a prompt ends with the opening tag, so that an output begins inside a thought (hazard 18)."""
    text = str(tokenizer.decode(list(prompt[-_TAIL:]), skip_special_tokens=False))
    return text.rstrip().endswith(OPEN_TAG)


def ends_of(model: str, tokenizer: Any) -> set[int]:
    """The ids that end an output: the tokenizer's, and those of the model's generation config where it has one."""
    from transformers import GenerationConfig

    try:
        given = GenerationConfig.from_pretrained(model).eos_token_id
    except (OSError, ValueError):
        given = None
    own = given if isinstance(given, list) else [given]
    return {int(i) for i in (*own, tokenizer.eos_token_id) if i is not None}


def reward_model_of(config: Any, settings: RLMTConfig, router: str | None = None) -> RewardModel:
    """The reward model of a run, as one of `reward.num_workers` processes asks it (F46).

    Args:
        router: The address of verl's own service, which answers as vLLM does.

    Raises:
        UserError: a reward model that cannot be used.
    """
    if router is not None:
        served = config.reward.reward_model.model_path
        settings = replace(
            settings,
            reward_model=settings.reward_model or served,
            server=f"http://{router}",
            server_model=settings.server_model or served,
        )
    # verl gives its GPUs to actor and rollout alone, and a reward worker none: what runs here runs on the CPU.
    model = load_reward_model(settings, world_size=config.reward.num_workers, device="cpu")
    # Samples come one by one, and each call would have its noise measured.
    model.repeats.every_call = False
    return model


def rlmt(*args: Any, **kwargs: Any) -> NoReturn:
    """Stands in `reward.custom_reward_function` so that verl asks the manager and not its own reward model.

    Raises:
        UserError: always: nobody is to call it.
    """
    raise UserError(
        "rl_think_ext.verl.rlmt_reward.rlmt is no reward by itself: it lets verl ask the reward manager, so say "
        "`reward.reward_manager.name: rlmt` with it"
    )
