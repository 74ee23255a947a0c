"""What RLP does beside a training step: one EMA update per optimizer step, its checkpoint, the alarms, the record."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_think_ext.scoring.ema import WeightAverage, trainable_checksum
from rl_think_ext.trl.record_callback import RecordCallback

if TYPE_CHECKING:
    from rl_think_ext.trl.rlp_reward import InformationGain

logger = logging.getLogger(__name__)


class RLPCallback(RecordCallback):
    """Follows one reward through one trainer's run, and no longer than the reward serves that trainer."""

    def __init__(self, reward: InformationGain, trainer: Any) -> None:
        super().__init__(trainer, reward.describe, reward.alarms(), reward.prefix)
        self.reward = reward
        self._saved = 0

    @property
    def _averages(self) -> dict[str, WeightAverage]:
        return self.reward.averages if self.reward.trainer is self._trainer else {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A run starts from the policy or the checkpoint that is there now, whatever was scored before it."""
        self._saved = 0
        if self.reward.trainer is self._trainer:
            self.reward.restart()
            self.begin_record(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called once per optimizer step, however many micro-batches it has."""
        for average in self._averages.values():
            average.update()
        self._save(args, state, control.should_save)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The other place where the trainer decides to save."""
        self._save(args, state, control.should_save)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Whoever asked for a checkpoint after us gets the averages all the same."""
        self._save(args, state, self._saved != state.global_step)

    def _save(self, args: Any, state: Any, wanted: bool) -> None:
        """The averages belong to the checkpoint: without them a resumed run would have another reward.

        They are written before the trainer's own files, because the trainer deletes older checkpoints as soon as its
        own are written: at every moment there is one that is whole (F18).
        """
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}" / "rl_think"
        for name, average in self._averages.items() if wanted and state.is_world_process_zero else ():
            average.save(folder, name)
            self._saved = state.global_step
        if wanted and state.is_world_process_zero and self.reward.trainer is self._trainer:
            self.reward.save_state(folder)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep on every rank the batch behind a log, and in the main process the log."""
        batch = self.reward.batch
        if logs and self._began and args.log_completions and "rlp/gain" in logs and batch is not None:
            self.record.rollouts(state.global_step, *batch)
        super().on_log(args, state, control, logs, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Every rank leaves the checksums of its weights: they have to be equal."""
        sums = {name: average.checksum() for name, average in self._averages.items()}
        sums["policy"] = trainable_checksum(self._trainer.model)
        logger.info("rank %d checksums %s", args.process_index, sums)
        path = self.record.folder / f"checksums.rank{args.process_index}.json"
        path.write_text(json.dumps({"step": state.global_step, **sums}) + "\n", encoding="utf-8")
