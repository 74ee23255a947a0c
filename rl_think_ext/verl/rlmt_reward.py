"""RLMT's reward for verl: the reward manager `rlmt`, which gives each sample a reward model's score of its answer.

It needs of a sample its ids and the raw chat; the floor and the noise are the trainer's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NoReturn

from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.scoring.preference import Output, PreferenceScorer
from rl_think_ext.scoring.reward_model import RewardModel, load_reward_model
from rl_think_ext.template import OPEN_TAG
from rl_think_ext.verl.reward_worker import ThinkRewardManager, refuse_call
from rl_think_ext.verl.rlmt_sample import FORM, infos_of
from rl_think_ext.verl.sample_info import Info, chat_of

# Ids at the end of a prompt among which an opening tag is looked for; a tag is at most as many ids as characters.
_TAIL = 16


@dataclass(frozen=True)
class Sample:
    """One output with the chat that it answers; `prefilled` says that its prompt ends with the opening tag."""

    chat: list[dict[str, str]]
    output: Output
    prefilled: bool
    since: float = field(default_factory=time.monotonic, compare=False)


class RLMTRewardManager(ThinkRewardManager):
    """Scores answers with a reward model: in this process on the CPU, behind a server, or in verl's own service.

    Args and Raises as ThinkRewardManager.
    """

    form = FORM
    settings: RLMTConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._noise = math.nan

    @cached_property
    def scorer(self) -> PreferenceScorer:
        """Made when the first sample is there, so that what is wrong reaches the trainer.

        Raises:
            UserError: a reward model that cannot be used.
        """
        model = reward_model_of(self.config, self.settings, self.router)
        return PreferenceScorer(self.settings, model, self._lengths)

    def _sample(self, item: Any) -> Sample:
        prompt, output = self._ids(item)
        return Sample(chat_of(item.non_tensor_batch), output, is_prefilled(prompt, self.tokenizer))

    def _score(self, samples: list[Sample]) -> list[Info]:
        from rl_think_ext.scoring.served import ServedRewardModel

        model, found = self.scorer.model, dict[int, Info]()
        if isinstance(model, ServedRewardModel):
            model.time_left = self._time_left(sample.since for sample in samples)
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
    refuse_call("rlmt")
