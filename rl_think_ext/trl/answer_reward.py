"""The rewards of VeriFree and RLPR for TRL: a reference answer's probability behind the thought, by RLP's scorer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from trl import GRPOConfig

from rl_think_ext.errors import UserError
from rl_think_ext.methods.alarms import Alarms
from rl_think_ext.methods.rlp import RLPConfig, group_advantage
from rl_think_ext.methods.rlpr import (
    RLPRConfig,
    StdFilter,
    debiased,
    group_std,
    mean_probability,
    scaled_advantage,
)
from rl_think_ext.methods.verifree import VeriFreeConfig, answer_loss, answer_probability
from rl_think_ext.scoring.answer import AnswerScorer
from rl_think_ext.scoring.gain import Gains, GainScorer, Rollout, gain_metrics
from rl_think_ext.scoring.likelihood import Query
from rl_think_ext.trl import answer_checks, host, policy_logprob
from rl_think_ext.trl.rlp_reward import InformationGain
from rl_think_ext.trl.trainer import ThinkGRPOConfig

if TYPE_CHECKING:
    from trl import GRPOTrainer

# The gain's metrics that say the same here, and those that are another quantity under a name of its own.
_KEPT = (
    "accuracy",
    "thought_length",
    "unclosed",
    "nested",
    "zero_variance_groups",
    "score_noise",
    "score_noise_to_spread",
    "unscorable",
)
_RENAMED = {"logprob_reasoned": "probability", "logprob_baseline": "probability_direct"}


@dataclass
class VeriFreeGRPOConfig(ThinkGRPOConfig):
    """GRPOConfig with the defaults that make it VeriFree (arXiv 2505.21493)."""

    loss_type: str = field(default="dr_grpo", metadata={"help": "A sum over a thought's tokens, as in the gradient."})


@dataclass
class RLPRGRPOConfig(policy_logprob.KernelOption, GRPOConfig):
    """GRPOConfig, and `logprob_kernel`. RLPR changes none of GRPO's defaults."""


class AnswerReward(InformationGain):
    """What VeriFree and RLPR share: whole reference answers, a text before them, probabilities in place of nats.

    Dataset columns: `prompt`, `context` (the question) and `target` (the reference answer), as for RLP.
    """

    arguments: ClassVar[type[Any]] = GRPOConfig
    columns: ClassVar[Mapping[str, str]] = {
        "probability": "reasoned",
        "probability_direct": "baseline",
        "accuracy": "accuracy",
    }

    def scoring(self, given: Any) -> RLPConfig:
        """What the settings say to RLP's reader and scorer."""
        return given.scoring

    def alarms(self) -> Callable[[Mapping[str, float | None]], list[str]]:
        """RLP's alarms; the reward takes the gain's place in them."""
        watch = Alarms()
        return lambda metrics: watch({**metrics, "gain_frozen": metrics.get("reward")})

    def make_scorer(self, *parts: Any) -> GainScorer:
        """The scorer that takes probabilities of the answer."""
        return AnswerScorer(self.config, *parts, value=self.value)

    @staticmethod
    def value(logprob: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The number of one side: [N, K] log-probs to [N]."""
        raise NotImplementedError

    def check_trainer(self, trainer: GRPOTrainer) -> None:
        """Look a dataset that has a length through for answers that are too long."""
        before = self.settings.answer_prefix
        self._before_answer = (
            tuple(self.reader.tokenizer(before, add_special_tokens=False)["input_ids"]) if before else ()
        )
        answer_checks.check_answers(trainer.train_dataset, self.reader, self.settings.max_answer_tokens)
        host.hush_unscorable()

    def metrics(self, gains: Gains, group_size: int) -> dict[str, float]:
        """The step's own words: probabilities are no log-probs."""
        found = gain_metrics(gains, group_size)
        paid = gains.column("gain")
        metrics = {"reward": float(paid.nanmean()), **{name: found[name] for name in _KEPT}}
        metrics |= {new: found[old] for old, new in _RENAMED.items()}
        return metrics | {name: value for name, value in found.items() if name.startswith("unscorable/")}

    def _rollouts(
        self, rows: Sequence[tuple[dict[str, Any], str]], completion_ids: Sequence[Sequence[int]]
    ) -> list[Rollout]:
        """With the text before the answer behind the thought and, for the answer without one, behind the question."""
        before, found = self._before_answer, []
        for rollout, (_, where) in zip(super()._rollouts(rows, completion_ids), rows, strict=True):
            answer_checks.check_answer(rollout.target, self.settings.max_answer_tokens, where)
            thought = rollout.thought._replace(ids=(*rollout.thought.ids, *before))
            found.append(rollout._replace(context=(*rollout.context, *before), thought=thought))
        return found


class AnswerProbability(AnswerReward):
    """VeriFree's reward (arXiv 2505.21493): the probability of the reference answer behind the thought.

    Under ThinkGRPOTrainer (`rl-think train`) both terms of the gradient are trained, the advantage leaves one out.
    Under the stock `trl grpo` there is the first term alone, which the settings have to say.

    Args:
        config: Settings; None takes the trainer's, or reads them from RL_THINK_CONFIG when training starts.
    """

    __name__ = "verifree"
    method, kind, arguments = "verifree", VeriFreeConfig, VeriFreeGRPOConfig
    value = staticmethod(answer_probability)

    def check_settings(self, args: Any) -> list[str]:
        """Warnings; what makes it another estimator raises."""
        return answer_checks.verifree_settings(args)

    def check_trainer(self, trainer: GRPOTrainer) -> None:
        """The stock trainer has no place for the second term."""
        super().check_trainer(trainer)
        if self.adds_loss and not getattr(trainer, "forms_advantage", False):
            raise UserError(
                "verifree: the stock trainer trains the first term of the gradient alone, the thoughts and not the "
                "answer: use `rl-think train`, or say `answer_term: false`."
            )

    @property
    def adds_loss(self) -> bool:
        """Whether the second term of the gradient is wanted."""
        return bool(self.settings.answer_term)

    def added_loss(self, rows: Sequence[int]) -> torch.Tensor:
        """- 1/(B L) sum_i R_i log pi(y* | x, z_i), B and L as in TRL's `dr_grpo`: one scale for both terms."""
        assert self.batch is not None and self.scorer is not None
        _, rollouts, gains = self.batch
        scored = gains.column("reason") < 0
        rows_scored = [i for i in rows if scored[i]]
        queries = [Query(rollouts[i].prompt + rollouts[i].thought.ids, rollouts[i].target) for i in rows_scored]
        logprob = self.scorer.likelihood.with_gradient(queries)  # type: ignore[attr-defined]
        reward = gains.column("reasoned")[rows_scored].to(logprob)
        return answer_loss(reward, logprob) / (len(rows) * self.trainer.max_completion_length)


class MeanProbability(AnswerReward):
    """RLPR's reward (arXiv 2506.18254): the answer's mean token probability, less that without the thought, clipped.

    A prompt that the standard-deviation filter leaves out is paid None as a whole: its advantage is 0, it is counted
    in `rlpr/left_out` and not among the unscorable. The filter's moving average is kept in checkpoints.

    Args:
        config: Settings; None takes the trainer's, or reads them from RL_THINK_CONFIG when training starts.
    """

    __name__ = "rlpr"
    method, kind, arguments = "rlpr", RLPRConfig, RLPRGRPOConfig
    columns: ClassVar[Mapping[str, str]] = {**AnswerReward.columns, "difference": "gain"}
    value = staticmethod(mean_probability)

    def restart(self) -> None:
        """Forget the moving average, too."""
        super().restart()
        self.filter = StdFilter()
        self._left_out: torch.Tensor | None = None

    def check_settings(self, args: Any) -> list[str]:
        """Warnings; what makes it another method raises."""
        return answer_checks.rlpr_settings(args)

    def settle(self) -> None:
        """Move the average by this step's groups, over all processes, and say which are left out; not in evaluation."""
        self._left_out = None
        if not self.trainer.model.training:
            return
        assert self.last is not None
        given, size = self.settings, self.trainer.num_generations
        std = group_std(self.paid(self.last), size)
        self.filter = self.filter.updated(std, given.std_decay)
        self._left_out = self.filter.left_out(std, given.std_filter, given.std_filter_start).repeat_interleave(size)

    def paid(self, gains: Gains) -> torch.Tensor:
        """[N] what each sample is worth, before any prompt is left out; NaN where there is no score."""
        value = gains.column("gain").clamp(0.0, 1.0)
        if self.config.baseline != "none":
            value = debiased(gains.column("reasoned"), gains.column("baseline"))
        return torch.where(gains.column("reason") < 0, value, torch.nan)

    def reward(self, gains: Gains) -> list[float | None]:
        """What each sample of this process is paid."""
        values = self.paid(gains)
        if self._left_out is not None:
            start = self.trainer.accelerator.process_index * len(values)
            values = values.masked_fill(self._left_out[start : start + len(values)], torch.nan)
        return [None if value != value else value for value in values.tolist()]

    def metrics(self, gains: Gains, group_size: int) -> dict[str, float]:
        """With what the filter did."""
        metrics = super().metrics(gains, group_size)
        values = self.paid(gains)
        metrics["reward"] = float(values.nanmean())
        metrics["reward_clipped"] = float((gains.column("gain") < 0).float()[~values.isnan()].mean())
        metrics["reward_std"] = float(group_std(values, group_size).nanmean())
        if self._left_out is not None:
            metrics["left_out"] = float(self._left_out.float().mean())
            metrics["std_average"] = float("nan") if self.filter.mean is None else self.filter.mean
        return metrics

    def advantage(self, rewards: torch.Tensor, group_size: int, noise: float) -> torch.Tensor:
        """GRPO's own; with `scale_rewards: none` that of RLP's eq. 7."""
        if self.trainer.args.scale_rewards == "none":
            return group_advantage(rewards, group_size, noise)
        return scaled_advantage(rewards, group_size)

    def save_state(self, folder: Path) -> None:
        """The filter's moving average."""
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / "rlpr.json.partial"
        partial.write_text(json.dumps(dataclasses.asdict(self.filter)) + "\n", encoding="utf-8")
        partial.replace(folder / "rlpr.json")

    def load_state(self, folder: Path) -> None:
        """A resumed run goes on with the moving average of its checkpoint, or not at all (F19).

        Raises:
            UserError: it is not there, or not what it should be.
        """
        path = folder / "rlpr.json"
        try:
            self.filter = StdFilter(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: the moving average of RLPR's filter cannot be read: {error}") from error


REWARDS: dict[type[Any], type[AnswerReward]] = {VeriFreeConfig: AnswerProbability, RLPRConfig: MeanProbability}
