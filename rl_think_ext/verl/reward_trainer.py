"""RewardTrainer: what trainers share whose samples are scored by verl's reward workers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import transfer_queue as tq
from verl.utils import tensordict_utils as tu

from rl_think_ext.verl.reward_checks import compares
from rl_think_ext.verl.sample_info import UNSCORABLE, SampleForm, Settled, plain
from rl_think_ext.verl.trainer import ThinkTrainer

INFO = "reward_extra_info"


class RewardTrainer(ThinkTrainer):
    """Pays a step's samples out of what the reward workers said of each, and shows it in validation and dumps."""

    form: ClassVar[SampleForm]
    reward_loop_manager: Any

    @abstractmethod
    def settled(self, infos: Sequence[Mapping[str, Any]], groups: Sequence[Hashable], *, compared: bool) -> Settled:
        """What the samples of a step are paid.

        Args:
            infos: What the reward manager said of each sample.
            groups: The name of each sample's group; groups need not be of one size.
            compared: Whether advantages compare the samples of a group; with a critic they do not.

        Raises:
            UserError: what ended the run in a worker.
        """

    @abstractmethod
    def was_asked(self, shown: Mapping[str, Any]) -> bool:
        """Whether a sample reached what scores; `shown` is what a dump says of it."""

    def has_failed(self) -> bool:
        """Also without a score of all that were asked for: a number for outputs without the form would hide it."""
        asked = [key for key, shown in self.columns.items() if self.was_asked(shown)]
        return super().has_failed() or bool(asked and all(self.scores[key].value is None for key in asked))

    def _compute_reward_colocate(self, batch: Any, metrics: dict[str, Any] | None = None) -> Any:
        """verl keeps what a colocated reward model's manager says beside the samples: put it where it is otherwise."""
        with self._rows_shown(batch):
            batch = super()._compute_reward_colocate(batch, metrics)
        names = ["extra_fields", *self.form.keys]
        found = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
        fields = [dict(row) for row in found["extra_fields"]]
        columns = {name: [plain(value) for value in found[name]] for name in self.form.keys}
        for i, row in enumerate(fields):
            # A sample that the agent loop refused has told why already.
            if not row.get(INFO, {}).get(self.form.fatal_key):
                row[INFO] = {name: values[i] for name, values in columns.items()}
        tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=tu.get_tensordict({"extra_fields": fields})
        )
        return batch

    @contextmanager
    def _rows_shown(self, batch: Any) -> Iterator[None]:
        """Inside, a colocated reward model's manager sees the rows of the dataset, too: verl shows the chats alone."""
        manager = self.reward_loop_manager
        rows = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["think_row"])
        column = np.empty(len(batch.keys), dtype=object)
        column[:] = [tu.unwrap_non_tensor_data(row) for row in rows["think_row"]]

        def compute_rm_score(data: Any) -> Any:
            data.non_tensor_batch["think_row"] = column
            return manager.compute_rm_score(data)

        self.reward_loop_manager = SimpleNamespace(compute_rm_score=compute_rm_score)
        try:
            yield
        finally:
            self.reward_loop_manager = manager

    def _compute_old_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
        rows = self.real_rows(batch)
        found = tq.kv_batch_get(
            keys=[batch.keys[i] for i in rows], partition_id=batch.partition_id, select_fields=["extra_fields"]
        )
        infos = [dict(row).get(INFO) or {} for row in found["extra_fields"]]
        names = [batch.keys[i].split("_", 1)[0] for i in rows]
        step = self.settled(infos, names, compared=compares(self.config))
        metrics |= {self.form.prefix + name: value for name, value in step.metrics.items()}
        self.settle(
            batch,
            dict(zip(rows, step.scores, strict=True)),
            metrics,
            quiet=[i for i, quiet in zip(rows, step.quiet, strict=True) if quiet],
            columns=dict(zip(rows, map(self._shown_of, infos), strict=True)),
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
        """Means of what the samples of all sources are paid: the step is the whole validation."""
        step, judged = self._judged(reward_extra_infos_dict)
        names = ("reward", UNSCORABLE, *self.form.numbers)
        kept = {name: values for name, values in judged.items() if name in names}
        found = super()._val_metrics_update(data_sources, sample_uids, kept, sample_turns, **kwargs)
        own = {f"val-aux/{self.form.prefix}{name}": value for name, value in step.metrics.items()}
        return found | own

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
        if self.form.fatal_key in reward_extra_infos_dict:
            _, judged = self._judged(reward_extra_infos_dict)
            scores = judged["reward"]
            names = ("uid", UNSCORABLE, *self.form.shown)
            reward_extra_infos_dict = {name: judged[name] for name in names if name in judged}
        super()._dump_generations(inputs, outputs, gts, scores, reward_extra_infos_dict, dump_path)

    def _judged(self, columns: Mapping[str, list[Any]]) -> tuple[Settled, dict[str, list[Any]]]:
        """A validation's samples as a step, and its columns with what they are paid."""
        num = len(columns["reward"])
        infos = [{name: columns[name][i] for name in self.form.keys if name in columns} for i in range(num)]
        step = self.settled(infos, [str(i) for i in range(num)], compared=False)
        rewards = [score.value for score in step.scores]
        return step, {**columns, "reward": rewards, UNSCORABLE: [score.reason or "" for score in step.scores]}

    def _shown_of(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """What a dump says of a sample beside what it is paid."""
        shown = {name: info[name] for name in self.form.shown}
        return {**shown, self.form.prefix + UNSCORABLE: info[UNSCORABLE] or None}
