"""RLMTTrainer: what a whole step of RLMT is paid under verl, in the same words and numbers as under TRL."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import transfer_queue as tq
from verl.utils import tensordict_utils as tu

from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.methods.rlmt_alarms import RLMTAlarms
from rl_think_ext.verl import rlmt_checks
from rl_think_ext.verl.rlmt_reward import ends_of, reward_model_of
from rl_think_ext.verl.rlmt_sample import FATAL, KEYS, NUMBERS, PREFIX, SHOWN, UNSCORABLE
from rl_think_ext.verl.rlmt_step import Step
from rl_think_ext.verl.trainer import ThinkTrainer

logger = logging.getLogger(__name__)

INFO = "reward_extra_info"


class RLMTTrainer(ThinkTrainer):
    """RLMT (arXiv 2509.20357) through verl: GRPO, RLOO, or PPO with a critic, by `trainer.v1.trainer_mode=rlmt`."""

    method = "rlmt"
    settings: RLMTConfig

    def check(self) -> list[str]:
        """What makes the run another method raises, the reward model's template included."""
        found = rlmt_checks.check_config(self.config, self.settings)
        if not self.config.reward.reward_model.enable:
            reward_model_of(self.config, self.settings)
        return found

    def watch(self) -> RLMTAlarms:
        """The alarms of the method."""
        return RLMTAlarms()

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        ends = ends_of(self.config.actor_rollout_ref.model.path, self.tokenizer)
        for warning in rlmt_checks.check_template(self.config, self.settings, self.tokenizer, ends):
            logger.warning("rl_think: %s", warning)
        rlmt_checks.check_room(self.config, self.positions())

    def _compute_reward_colocate(self, batch: Any, metrics: dict[str, Any] | None = None) -> Any:
        """verl keeps what a colocated reward model's manager says beside the samples: put it where it is otherwise."""
        batch = super()._compute_reward_colocate(batch, metrics)
        found = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields", *KEYS])
        fields = [dict(row) for row in found["extra_fields"]]
        columns = {name: _plain(list(found[name])) for name in KEYS}
        for i, row in enumerate(fields):
            # A sample that the agent loop refused has told why already.
            if not row.get(INFO, {}).get(FATAL):
                row[INFO] = {name: columns[name][i] for name in KEYS}
        tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=tu.get_tensordict({"extra_fields": fields})
        )
        return batch

    def _compute_old_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
        rows = self.real_rows(batch)
        found = tq.kv_batch_get(
            keys=[batch.keys[i] for i in rows], partition_id=batch.partition_id, select_fields=["extra_fields"]
        )
        infos = [dict(row).get(INFO) or {} for row in found["extra_fields"]]
        names = [batch.keys[i].split("_", 1)[0] for i in rows]
        step = Step.of(infos, names, self.settings, compared=rlmt_checks.compares(self.config))
        metrics |= {PREFIX + name: value for name, value in step.metrics.items()}
        self.settle(
            batch,
            dict(zip(rows, step.scores, strict=True)),
            metrics,
            quiet=[i for i, quiet in zip(rows, step.quiet, strict=True) if quiet],
            columns=dict(zip(rows, map(_shown, infos), strict=True)),
        )
        return super()._compute_old_log_prob(batch, metrics)

    def _val_metrics_update(
        self,
        data_sources: list[str],
        sample_uids: list[str],
        reward_extra_infos_dict: dict[str, list[Any]],
        sample_turns: list[int],
        **kwargs: Any,
    ) -> dict[str, float]:
        """Means of what the samples of all sources are paid: the floor is that of the whole validation."""
        step, judged = self._judged(reward_extra_infos_dict)
        kept = {name: values for name, values in judged.items() if name in ("reward", UNSCORABLE, *NUMBERS)}
        found = super()._val_metrics_update(data_sources, sample_uids, kept, sample_turns, **kwargs)
        return found | {f"val-aux/{PREFIX}{name}": value for name, value in step.metrics.items()}

    def _dump_generations(
        self,
        inputs: list[str],
        outputs: list[str],
        gts: list[Any],
        scores: list[float],
        reward_extra_infos_dict: dict[str, list[Any]],
        dump_path: str,
    ) -> None:
        """A validation's dump says what its samples are paid, as a training step's does."""
        if FATAL in reward_extra_infos_dict:
            _, judged = self._judged(reward_extra_infos_dict)
            scores = judged["reward"]
            names = ("uid", UNSCORABLE, *SHOWN)
            reward_extra_infos_dict = {name: judged[name] for name in names if name in judged}
        super()._dump_generations(inputs, outputs, gts, scores, reward_extra_infos_dict, dump_path)

    def _judged(self, columns: Mapping[str, list[Any]]) -> tuple[Step, dict[str, list[Any]]]:
        """A validation's samples as a step, and its columns with what they are paid."""
        num = len(columns["reward"])
        infos = [{name: columns[name][i] for name in KEYS if name in columns} for i in range(num)]
        step = Step.of(infos, [str(i) for i in range(num)], self.settings, compared=False)
        rewards = [score.value for score in step.scores]
        return step, {**columns, "reward": rewards, UNSCORABLE: [score.reason or "" for score in step.scores]}


def _shown(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a dump says of a sample beside what it is paid."""
    return {**{name: info[name] for name in SHOWN}, PREFIX + UNSCORABLE: info[UNSCORABLE] or None}


def _plain(values: list[Any]) -> list[Any]:
    """Numbers and texts of Python out of those of an array."""
    return [value.item() if hasattr(value, "item") else value for value in values]
