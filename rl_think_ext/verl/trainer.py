"""ThinkTrainer: verl's synchronous PPO trainer and what all methods need: settings, samples without a score, a record.

verl has no word for a sample that cannot be scored: every row takes part. Here such a row keeps its place and loses its
vote. Its response_mask and loss_mask are 0, so that no loss, critic target or whitening sees it; it gets a group of its
own, so that no mean does; and no metric of scores counts it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass

from rl_think_ext import settings
from rl_think_ext.errors import UserError
from rl_think_ext.records import Score
from rl_think_ext.run_record import FOLDER, Record, dataset
from rl_think_ext.scoring.endpoint_wire import public
from rl_think_ext.scoring.sample import max_positions
from rl_think_ext.verl import plugin, resolved
from rl_think_ext.verl.data_files import folder_of, name_splits
from rl_think_ext.verl.worker import ThinkTrainingWorker, ThinkWorker

logger = logging.getLogger(__name__)

_ACTORS = (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef)
UNSCORABLE = "unscorable"


class ThinkTrainer(PPOTrainerSync):
    """One run of a method through verl, by `trainer.v1.trainer_mode=<method>`.

    A subclass settles the scores of a batch in `_compute_old_log_prob`, the first thing that happens to it.
    """

    method: ClassVar[str]

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self._look_at_host()
        for warning in self.prepare():
            logger.warning("rl_think: %s", warning)
        with open_dict(config):
            # verl compares this with its own names, and everything else about it is "sync".
            config.trainer.v1.trainer_mode = "sync"
        super().__init__(config)
        self.alarms = self.watch()
        self.record = Record(config.trainer.default_local_dir, 0)
        self.scores: dict[str, Score] = {}
        self.columns: dict[str, dict[str, Any]] = {}
        self._quiet: list[str] = []
        self._failed = 0
        self._shown: tuple[list[str], list[str]] | None = None

    def prepare(self) -> list[str]:
        """Resolve and check what the configuration says, before verl looks at it; warnings come back.

        Raises:
            UserError: naming the key.
        """
        self.settings, self.source = resolved.resolve(self.config, self.method)
        self.door = resolved.door_of(self.config)
        resolved.check_door(self.config, self.door)
        found = self.check()
        name_splits(self.config)
        return found

    def _look_at_host(self) -> None:
        """What is found only here, or would be found only behind the start of all workers.

        Raises:
            UserError: a folder that cannot be written, or a config without the method's fragment.
        """
        warning = plugin.check_version(plugin.verl_version())
        if warning:
            logger.warning("rl_think: %s", warning)
        named = self.config.data.custom_cls.name
        if named is None:
            raise UserError(
                f"trainer.v1.trainer_mode: {self.method} needs more than its name: say `+rl_think={self.method}` with "
                "`hydra.searchpath=[pkg://rl_think_ext.verl.config]`, which brings the rest"
            )
        folder = Path(self.config.trainer.default_local_dir) / FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(13, os.strerror(13))
        except OSError as error:
            raise UserError(f"trainer.default_local_dir: cannot write to {folder}: {error.strerror}") from error

    def check(self) -> list[str]:
        """Warnings about verl's configuration; what makes it another method raises.

        Raises:
            UserError: naming the key, the value that is needed and the reason.
        """
        raise NotImplementedError

    def watch(self) -> Any:
        """What looks at a step's metrics, without their prefix, and says what went wrong."""
        raise NotImplementedError

    def _init_resource_pool_mgr(self) -> None:
        """verl has no key for the worker's class."""
        super()._init_resource_pool_mgr()
        for role in self.role_worker_mapping:
            if role in _ACTORS:
                self.role_worker_mapping[role] = ray.remote(ThinkWorker)
            elif role == Role.Critic:
                self.role_worker_mapping[role] = ray.remote(ThinkTrainingWorker)

    def positions(self) -> int | None:
        """What a prompt and everything behind it have room in: the model's positions, or the rollout engine's fewer."""
        model = omega_conf_to_dataclass(self.config.actor_rollout_ref.model)
        own = max_positions(SimpleNamespace(config=model.hf_config))
        known = [size for size in (own, self.config.actor_rollout_ref.rollout.get("max_model_len")) if size]
        return min(known, default=None)

    def _load_checkpoint(self) -> None:
        """The workers are there, and have computed nothing yet."""
        if self.door.logprob_kernel:
            self.actor_rollout_wg.think_kernel()
        super()._load_checkpoint()

    def fit(self, agent_loop_manager: Any) -> None:
        """Say what is trained, and train."""
        self.announce()
        self.record.begin(self.global_steps)
        self.record.describe(self.describe())
        super().fit(agent_loop_manager)

    def announce(self) -> None:
        """Print the settings and keep them beside the checkpoints.

        Raises:
            UserError: a folder that cannot be written.
        """
        mark, values = settings.fingerprint(self.settings), public(self.settings)
        shown = " ".join(f"{name}={value}" for name, value in values.items())
        print(f"[rl_think] {self.method.upper()} settings {mark} ({self.source}): {shown}", flush=True)
        folder = Path(self.config.trainer.default_local_dir) / FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"fingerprint": mark, self.method: values}, indent=2)
            (folder / "settings.json").write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"trainer.default_local_dir: cannot write to {folder}: {error.strerror}") from error

    def describe(self) -> dict[str, Any]:
        """What run.json says about the run."""
        return {
            "method": self.method,
            "fingerprint": settings.fingerprint(self.settings),
            "settings": public(self.settings),
            "source": self.source,
            "model": self.config.actor_rollout_ref.model.path,
            "trainer": f"verl {type(self).__name__}",
            # The driver writes for all of them.
            "num_processes": 1,
            "dataset": dataset(self.train_dataset, folder_of(self.config.data.train_files)),
        }

    # -- scores ------------------------------------------------------------------------------------------------------

    @staticmethod
    def real_rows(batch: Any) -> list[int]:
        """The rows that are samples: verl fills a batch up with copies of its first one."""
        return [i for i, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]

    @staticmethod
    def groups(batch: Any, rows: Sequence[int]) -> list[list[int]]:
        """The given rows by the prompt that they answer, in the order of the batch."""
        found: dict[str, list[int]] = {}
        for i in rows:
            found.setdefault(batch.keys[i].split("_", 1)[0], []).append(i)
        return list(found.values())

    def settle(
        self,
        batch: Any,
        scores: Mapping[int, Score],
        metrics: dict[str, Any],
        quiet: Collection[int] = (),
        columns: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> None:
        """Put the scores of a batch in place, and take out of the training what has none.

        Args:
            batch: verl's keys of the step's samples.
            scores: One for each real row.
            metrics: Of the step.
            quiet: Rows whose group differs by noise alone: they get no advantage (F47).
            columns: What the dumps of rollouts say of a row beside its score.

        Raises:
            UserError: no row was scorable for `max_failed_steps` steps in a row (F6); nothing is saved.
        """
        rows = list(scores)
        keys = [batch.keys[i] for i in rows]
        data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["response_mask", "uid"])
        fields = placed([scores[i] for i in rows], list(data["response_mask"].unbind()), list(data["uid"]))
        tq.kv_batch_put(keys=keys, partition_id=batch.partition_id, fields=tu.get_tensordict(fields))
        self.scores = dict(zip(keys, scores.values(), strict=True))
        self.columns = {batch.keys[i]: dict(row) for i, row in (columns or {}).items()}
        lonely = [i for group in self.groups(batch, rows) for i in _lonely(group, scores)]
        self._quiet = [batch.keys[i] for i in {*quiet, *lonely}]
        metrics[f"{self.method}/unscorable"] = sum(score.value is None for score in scores.values()) / max(1, len(rows))
        # verl goes on without a sample whose sampling failed, and says nothing of it.
        wanted = self.config.data.train_batch_size * self.config.actor_rollout_ref.rollout.n
        metrics[f"{self.method}/lost"] = 1.0 - len(rows) / wanted
        self._count_failures()

    @property
    def nothing_scored(self) -> bool:
        """Whether the step's batch has no sample that can be trained on."""
        return all(score.value is None for score in self.scores.values())

    def has_failed(self) -> bool:
        """Whether the step brought nothing that was scored."""
        return self.nothing_scored

    def _count_failures(self) -> None:
        self._failed = self._failed + 1 if self.has_failed() else 0
        if self._failed >= self.settings.max_failed_steps:
            found = sorted({score.reason for score in self.scores.values() if score.reason})
            raise UserError(f"no sample was scorable in {self._failed} steps in a row: {', '.join(found[:5])}")

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """verl's own estimator on what has a score; 0 for all where nothing has, and where nothing can be compared."""
        if self.nothing_scored:
            return self._put_zeros(batch, list(batch.keys), ("advantages", "returns"))
        batch = super()._compute_advantage(batch, metrics)
        # A group of one is taken for its own mean 0 there: its raw reward would be its advantage (F13).
        if self._quiet and self.config.algorithm.adv_estimator != "gae":
            self._put_zeros(batch, self._quiet, ("advantages", "returns"))
        return batch

    def _put_zeros(self, batch: Any, keys: list[str], names: Sequence[str]) -> Any:
        masks = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["response_mask"])
        zeros = nested([torch.zeros(len(mask)) for mask in masks["response_mask"].unbind()])
        tq.kv_batch_put(
            keys=keys, partition_id=batch.partition_id, fields=tu.get_tensordict(dict.fromkeys(names, zeros))
        )
        return batch

    def _update_critic(self, batch: Any, metrics: dict[str, Any]) -> Any:
        return batch if self.nothing_scored else super()._update_critic(batch, metrics)

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """A step without a score is no step: momentum alone would move the weights."""
        return batch if self.nothing_scored else super()._update_actor(batch, metrics)

    # -- what is said of it ------------------------------------------------------------------------------------------

    def _compute_metrics(
        self, batch: Any, metrics: dict[str, Any], timing_raw: dict[str, float], global_steps: int, epoch: int
    ) -> None:
        """verl's metrics over the samples that have a score, the record's line, and the alarms."""
        unscorable = {key for key, score in self.scores.items() if score.value is None}
        # verl leaves out what it takes for padding, but cannot do without any row.
        leave_out = set() if self.nothing_scored else unscorable
        tags = [
            {**tag, "is_padding": tag.get("is_padding", False) or key in leave_out}
            for key, tag in zip(batch.keys, batch.tags, strict=True)
        ]
        super()._compute_metrics(replace(batch, tags=tags), metrics, timing_raw, global_steps, epoch)
        if self.nothing_scored:
            metrics.update({name: np.nan for name in metrics if name.startswith(("critic/score/", "critic/rewards/"))})
        self._keep(metrics, global_steps)

    def _keep(self, metrics: Mapping[str, Any], step: int) -> None:
        line = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float | np.number)}
        self.record.append("log.jsonl", {**line, "step": step})
        prefix = f"{self.method}/"
        for text in self.alarms({name.removeprefix(prefix): value for name, value in line.items()}):
            logger.warning("step %d: %s", step, text)
            self.record.append("alarms.jsonl", {"step": step, "alarm": text})

    def _dump_generations(
        self,
        inputs: list[str],
        outputs: list[str],
        gts: list[Any],
        scores: list[float],
        reward_extra_infos_dict: dict[str, list[Any]],
        dump_path: str,
    ) -> None:
        """verl's dump without its padding rows; the score of a row without one is null, with the reason beside it."""
        keys = reward_extra_infos_dict.get("uid", [])
        rows = [i for i, key in enumerate(keys) if not str(key).startswith("pad")]
        extra = {name: [values[i] for i in rows] for name, values in reward_extra_infos_dict.items()}
        # Validation brings the reasons with its samples, training has them here.
        reasons = extra.pop(UNSCORABLE, None) or [_reason(self.scores.get(keys[i])) for i in rows]
        names = sorted({name for i in rows for name in self.columns.get(keys[i], {})})
        extra |= {name: [self.columns.get(keys[i], {}).get(name) for i in rows] for name in names}
        extra[UNSCORABLE] = [reason or None for reason in reasons]
        super()._dump_generations(
            [inputs[i] for i in rows],
            [outputs[i] for i in rows],
            [gts[i] for i in rows],
            [None if reason else scores[i] for i, reason in zip(rows, reasons, strict=True)],
            extra,
            dump_path,
        )

    def _val_metrics_update(
        self,
        data_sources: list[str],
        sample_uids: list[str],
        reward_extra_infos_dict: dict[str, list[Any]],
        sample_turns: list[int],
        **kwargs: Any,
    ) -> dict[str, float]:
        """Means over the validation samples that have a score, and the share of those that have none."""
        reasons = reward_extra_infos_dict.get(UNSCORABLE) or [""] * len(sample_uids)
        kept = [i for i, reason in enumerate(reasons) if not reason]
        rewards = reward_extra_infos_dict["reward"]
        if self._shown is not None:
            table = [np.nan if reason else reward for reason, reward in zip(reasons, rewards, strict=True)]
            super()._maybe_log_val_generations(*self._shown, table)
            self._shown = None
        found = super()._val_metrics_update(
            [data_sources[i] for i in kept],
            [sample_uids[i] for i in kept],
            {
                name: [values[i] for i in kept]
                for name, values in reward_extra_infos_dict.items()
                if len(values) == len(reasons)
            },
            sample_turns,
            **kwargs,
        )
        # verl names its means by how many samples a prompt has left; this one is over all prompts.
        for source in {data_sources[i] for i in kept}:
            prompts: dict[str, list[float]] = {}
            for i in kept:
                if data_sources[i] == source:
                    prompts.setdefault(sample_uids[i], []).append(rewards[i])
            found[f"val-core/{source}/reward/mean"] = float(np.mean([np.mean(values) for values in prompts.values()]))
        return {**found, f"val-aux/{self.method}/unscorable": 1.0 - len(kept) / max(1, len(reasons))}

    def _maybe_log_val_generations(self, inputs: list[str], outputs: list[str], scores: list[float]) -> None:
        """verl asks before anybody has judged the scores: the table waits for `_val_metrics_update`."""
        self._shown = (inputs, outputs)


def placed(scores: Sequence[Score], masks: Sequence[torch.Tensor], uids: Sequence[Any]) -> dict[str, Any]:
    """The fields of samples after their scores are known: rewards on the last token, masks, and names of groups.

    Args:
        scores: One for each sample.
        masks: [length] of each response.
        uids: The group of each sample.
    """
    rewards, kept, names = [], [], []
    for i, (score, mask, uid) in enumerate(zip(scores, masks, uids, strict=True)):
        reward = torch.zeros(len(mask))
        if score.value is not None:
            reward[-1] = score.value
        rewards.append(reward)
        kept.append(mask if score.value is not None else torch.zeros_like(mask))
        names.append(str(uid) if score.value is not None else f"{uid}:{UNSCORABLE}:{i}")
    return {
        "rm_scores": nested(rewards),
        "response_mask": nested(kept),
        "loss_mask": nested(kept),
        "uid": np.array(names, dtype=object),
    }


def nested(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows of different lengths as verl keeps them."""
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


def _lonely(group: Sequence[int], scores: Mapping[int, Score]) -> list[int]:
    """The only scorable row of a group, if there is exactly one."""
    found = [i for i in group if scores[i].value is not None]
    return found if len(found) == 1 else []


def _reason(score: Score | None) -> str | None:
    return None if score is None else score.reason
