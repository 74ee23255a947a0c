"""RLPT's reward for verl: the reward manager `rlpt`, which gives each sample a judge's verdict on its prediction.

It needs of a sample its ids and the row of the dataset; the judge is that of the settings, whatever a row says (F42).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NoReturn

from rl_think_ext.data.segment_rows import segment_of
from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlpt import RLPTConfig
from rl_think_ext.scoring.judge import Judge, load_judge
from rl_think_ext.scoring.prediction import PredictionScorer, Segment
from rl_think_ext.scoring.preference import Output
from rl_think_ext.verl.reward_worker import ThinkRewardManager, refuse_call
from rl_think_ext.verl.rlpt_sample import FORM, infos_of
from rl_think_ext.verl.sample_info import Info, place_of, plain


@dataclass(frozen=True)
class Sample:
    """One output with the segment that it is about."""

    id: str | None
    segment: Segment
    output: Output
    since: float = field(default_factory=time.monotonic, compare=False)


class RLPTRewardManager(ThinkRewardManager):
    """Has predictions judged: by a rule in this process, behind a server, or in verl's own service.

    Args and Raises as ThinkRewardManager.
    """

    form = FORM
    settings: RLPTConfig

    @cached_property
    def scorer(self) -> PredictionScorer:
        """Made when the first sample is there, so that what is wrong reaches the trainer.

        Raises:
            UserError: a judge that cannot be asked.
        """
        return PredictionScorer(self.settings, judge_of(self.config, self.settings, self.router), self._lengths)

    def _sample(self, item: Any) -> Sample:
        row, where = plain(item.non_tensor_batch.get("think_row")), place_of(item.non_tensor_batch)
        if not isinstance(row, Mapping):
            raise UserError(f"{where} comes without its segment: say `data.custom_cls.name=RLPTDataset`")
        return Sample(row.get("id"), segment_of(row, where), self._ids(item)[1])

    def _score(self, samples: list[Sample]) -> list[Info]:
        from rl_think_ext.scoring.judge_served import ServedJudge

        if isinstance(self.scorer.judge, ServedJudge):
            self.scorer.judge.time_left = self._time_left(sample.since for sample in samples)
        segments = [sample.segment for sample in samples]
        outputs = [sample.output for sample in samples]
        found = self.scorer(segments, outputs)
        return infos_of(found, [sample.id for sample in samples], segments, outputs, self.settings.reward)


def judge_of(config: Any, settings: RLPTConfig, router: str | None = None) -> Judge:
    """The judge of a run, as one of `reward.num_workers` processes asks it (F46).

    Args:
        router: The address of verl's own service, which passes OpenAI's paths on to the engine.

    Raises:
        UserError: a judge that cannot be asked.
    """
    if router is not None:
        served = settings.judge_model or config.reward.reward_model.model_path
        settings = replace(settings, server=f"http://{router}", judge_model=served)
    return load_judge(settings, world_size=config.reward.num_workers)


def rlpt(*args: Any, **kwargs: Any) -> NoReturn:
    """Stands in `reward.custom_reward_function` so that verl asks the manager and not its own reward model.

    Raises:
        UserError: always: nobody is to call it.
    """
    refuse_call("rlpt")
