"""RPT's reward for TRL: a rule on bytes, without a model; works by name under the stock `trl grpo`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from rl_think_ext import settings
from rl_think_ext.errors import UserError
from rl_think_ext.methods.rpt import Continuation, RPTConfig, continuation, extract_prediction, reward
from rl_think_ext.scoring.token_bytes import text_bytes, token_bytes
from rl_think_ext.template import TagIds
from rl_think_ext.trl import answer_checks, checks, host
from rl_think_ext.trl.announce import announce, describe
from rl_think_ext.trl.record_callback import RecordCallback

if TYPE_CHECKING:
    from trl import GRPOTrainer

PREFIX = "rpt/"


class PrefixMatch:
    r"""RPT's reward (arXiv 2506.08007): 1 if the predicted bytes begin the continuation and end with one of its tokens.

    Dataset columns: `prompt` (text or a chat) and `target_ids`, or `target` as text. The prediction is the text in the
    last complete \boxed{} behind `</think>`. A row without a target is None; without a prediction the reward is 0.

    Args:
        config: Settings; None reads them from RL_THINK_CONFIG when training starts.
    """

    __name__ = "rpt"

    def __init__(self, config: RPTConfig | None = None) -> None:
        self._given = config
        self._trainer: GRPOTrainer | None = None
        self.dataset_name: str | None = None

    def bind(self, trainer: GRPOTrainer) -> None:
        """Tie the reward to a trainer and check it; a second call with the same one does nothing.

        Raises:
            UserError: settings, or a sampler that stops before there is a prediction.
        """
        if self._trainer is trainer:
            return
        host.check_host()
        self.config, self.source = (self._given, "given in code") if self._given else self._resolve()
        checks.warn_all(answer_checks.rpt_settings(trainer.args))
        tokenizer = host.tokenizer_of(trainer)
        answer_checks.check_goes_on(trainer, TagIds.of(tokenizer))
        if self.config.malformed == "unscorable":
            checks.check_rewards(trainer)
        self._trainer, self._tokenizer = trainer, tokenizer
        self._known: dict[Any, Continuation] = {}
        self._failed = 0
        callback = RecordCallback(trainer, self._describe, None, PREFIX)
        trainer.add_callback(callback)
        if trainer.is_in_train:
            callback.begin_record(trainer.state)
        announce(trainer, "rpt", self.config, self.source)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        log_extra: Any = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward per completion, None where the row has no target; see the class."""
        if not prompts:
            return []
        if log_metric is not None or self._trainer is None:
            self.bind(host.trainer_of(log_metric))
        targets = [self._target(row, i) for i, row in enumerate(_rows(columns, len(prompts)))]
        # Decoded here: TRL's text lacks special tokens, and a closing tag may be one.
        outputs = [self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False) for ids in completion_ids]
        said = [extract_prediction(output) for output in outputs]
        paid = [
            None if not target.text else reward(one, target, self.config.malformed)
            for one, target in zip(said, targets, strict=True)
        ]
        self._count_failures(paid)
        if log_metric is not None:
            self._log(log_metric, said, targets, paid)
        if log_extra is not None:
            log_extra(PREFIX + "prediction", said)
            log_extra(PREFIX + "target", [target.text.decode("utf-8", "replace") for target in targets])
        return paid

    def _resolve(self) -> tuple[RPTConfig, str]:
        mapping, where = settings.from_environment("rpt")
        return settings.build(RPTConfig, mapping, where), where

    def _describe(self) -> dict[str, Any]:
        assert self._trainer is not None
        return describe(self._trainer, "rpt", self.config, self.source, self.dataset_name)

    def _target(self, row: Mapping[str, Any], place: int) -> Continuation:
        """The continuation's bytes and boundaries, remembered: every output of a group brings the same row.

        Raises:
            UserError: no usable target, naming the row.
        """
        where = f"row {row['id']}" if row.get("id") else f"row {place} of the batch"
        ids, text = row.get("target_ids"), row.get("target")
        key = tuple(ids) if isinstance(ids, (list, tuple)) else text
        if not isinstance(key, (tuple, str)):
            raise UserError(
                f"{where}: no column `target_ids` (a list) or `target` (text); there are {', '.join(sorted(row))}"
            )
        if key not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = self._read(key, where)
        return self._known[key]

    def _read(self, target: tuple[int, ...] | str, where: str) -> Continuation:
        try:
            if isinstance(target, str):
                pieces = text_bytes(self._tokenizer, target)[: self.config.num_target_tokens]
            else:
                special = set(self._tokenizer.all_special_ids)
                end = next((i for i, token in enumerate(target) if token in special), len(target))
                pieces = token_bytes(self._tokenizer, target[: min(end, self.config.num_target_tokens)])
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        return continuation(pieces)

    def _count_failures(self, paid: Sequence[float | None]) -> None:
        """Give up after several calls in a row in which no process had a scorable sample (F6).

        An evaluation may come in batches of one output, of which several without a box are no failure of anything.
        """
        assert self._trainer is not None
        if not self._trainer.model.training:
            return
        accelerator = self._trainer.accelerator
        mine = torch.tensor([float(any(value is not None for value in paid))], device=accelerator.device)
        self._failed = 0 if bool(accelerator.gather(mine).any()) else self._failed + 1
        if self._failed >= self.config.max_failed_steps:
            raise UserError(
                f"no sample was scorable in {self._failed} steps in a row: the outputs have no prediction in "
                "\\boxed{} behind the thought (`malformed: unscorable`), or the rows have no target"
            )

    def _log(
        self,
        log_metric: Any,
        said: Sequence[str | None],
        targets: Sequence[Continuation],
        paid: Sequence[float | None],
    ) -> None:
        scored = [value for value in paid if value is not None]
        spoken = [(one.encode("utf-8", "surrogatepass"), t.text) for one, t in zip(said, targets, strict=True) if one]
        metrics = {
            "reward": _mean(scored),
            "predicted": _mean([one is not None for one in said]),
            # Right bytes, whatever the boundary: far above the reward means predictions that stop inside a token.
            "prefix": _mean([text.startswith(one) for one, text in spoken]),
            "longer_than_target": _mean([len(one) > len(text) for one, text in spoken]),
            "prediction_bytes": _mean([len(one) for one, _ in spoken]),
            "unscorable": _mean([value is None for value in paid]),
        }
        for name, value in metrics.items():
            log_metric(PREFIX + name, value)


_REMEMBERED = 4096


def _rows(columns: Mapping[str, Any], num: int) -> list[dict[str, Any]]:
    lists = {name: values for name, values in columns.items() if isinstance(values, list) and len(values) == num}
    return [{name: values[i] for name, values in lists.items()} for i in range(num)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
