"""The actor's worker: scores given targets, keeps averages of its weights, and leaves out what has no score.

verl has no key for the worker's class; the trainer puts these in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from rl_think_ext.errors import UserError
from rl_think_ext.scoring.ema import WeightAverage, trainable_checksum
from rl_think_ext.verl import targets

FOLDER = "rl_think"
POLICY = "policy"


class ThinkTrainingWorker(TrainingWorker):
    """verl's TrainingWorker for an actor or a critic, whose loss counts the samples that have a score."""

    averages: Mapping[str, WeightAverage] = {}

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"), blocking=False)
    def train_batch(self, data: TensorDict) -> TensorDict | None:
        """One optimizer step on a mini-batch; none where no sample of it has a score.

        verl divides by the mini-batch's size, samples without a score included, and a token mean by 0 tokens is NaN.
        """
        rows = self._scored_rows(data)
        if rows is None:
            return super().train_batch(data)
        if rows == 0:
            return self._no_step(data)
        tu.assign_non_tensor(data, global_batch_size=rows)
        output = super().train_batch(data)
        if output is not None:
            tu.get(output, "metrics")["steps_without_score"] = 0.0
        return output

    def _scored_rows(self, data: TensorDict) -> int | None:
        """Rows of the mini-batch, over all ranks, that have a token to train on; None for data without a mask."""
        if "response_mask" not in data.keys():  # noqa: SIM118 - a TensorDict has no `in`
            return None
        mask = data["response_mask"]
        count = torch.tensor(sum(bool(row.any()) for row in mask.unbind()), device=get_device_id())
        torch.distributed.all_reduce(count, group=self.engine.get_data_parallel_group())
        return int(count)

    def _no_step(self, data: TensorDict) -> TensorDict | None:
        """What a step would have answered; the learning rate's schedule goes on."""
        metrics = {"loss": 0.0, "mfu": 0.0, "steps_without_score": 1.0}
        if tu.get(data, "update_lr_scheduler", default=False):
            metrics["lr"] = self.engine.lr_scheduler_step()
        if not self.engine.is_mp_src_rank_with_outputs():
            return None
        return tu.get_tensordict({}, {"metrics": metrics})

    def average(self, decays: Mapping[str, float]) -> None:
        """Begin averages of the weights that train, at what they are now; one update per optimizer step from then on.

        Raises:
            UserError: weights that are split in a way that cannot be averaged.
        """
        targets.refuse(self.engine_config)
        if not self.averages:
            self.engine.optimizer.register_step_post_hook(self._after_step)
        self.averages = {name: WeightAverage(self.engine.module, tau, shards=True) for name, tau in decays.items()}

    def _after_step(self, *_: Any) -> None:
        """Behind a step that verl skips, because a gradient is not finite, nobody comes here."""
        for average in self.averages.values():
            average.update()

    def score(self, data: TensorDict) -> TensorDict | None:
        """Log-probs of targets (`targets.FIELDS`) and, if asked for, of every id of a row.

        Args:
            data: What `targets.pack` made, with `weights`: "policy" or the name of an average, `forbid_first`: an id or
                -1, and `whole`: whether every id of a row is answered for, at `temperature`.

        Raises:
            UserError: an engine whose logits cannot be had, or an average that was not begun.
        """
        targets.refuse(self.engine_config)
        weights, forbid = tu.pop(data, "weights"), tu.pop(data, "forbid_first")
        whole = tu.pop(data, "whole")
        tu.assign_non_tensor(data, calculate_entropy=whole, compute_loss=False, disable_auto_offload=True)
        answering = targets.answered(self.engine, forbid if forbid >= 0 else None, whole)
        # On the device before the weights are exchanged, and off it when they are back.
        with self.engine.eval_mode(), self._weights(weights), answering:
            return self.infer_batch(data)

    def _weights(self, name: str) -> AbstractContextManager[None]:
        if name == POLICY:
            return nullcontext()
        if name not in self.averages:
            raise UserError(f"no average named {name} was begun; there are {', '.join(self.averages) or 'none'}")
        return self.averages[name].swapped_in()

    def state(self) -> dict[str, float]:
        """Numbers of this process's part of the weights: sums, and squared distances of the averages from them."""
        copies = self.engine.device_mesh.size(0) if self.engine.device_mesh.ndim > 1 else 1
        found = {"policy_checksum": trainable_checksum(self.engine.module) / copies}
        for name, average in self.averages.items():
            found |= {
                f"{name}_checksum": average.checksum() / copies,
                f"{name}_distance": average.distance() ** 2 / copies,
                f"{name}_updates": float(average.updates),
            }
        return found

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """verl's checkpoint with the averages, which come first: verl deletes older checkpoints in the course (F18)."""
        for name, average in self.averages.items():
            average.save(Path(local_path) / FOLDER, self._part(name))
        super().save_checkpoint(local_path, *args, **kwargs)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """A resumed run goes on with the averages of its checkpoint, or not at all (F19)."""
        folder = Path(local_path) / FOLDER
        for name in self.averages:
            self._check_ranks(folder, name)  # first: verl's own words for it are a file that is not there
        super().load_checkpoint(local_path, *args, **kwargs)
        for name, average in self.averages.items():
            average.load(folder, self._part(name))

    def _part(self, name: str) -> str:
        return f"{name}.rank{self.rank}of{self.world_size}"

    def _check_ranks(self, folder: Path, name: str) -> None:
        there = {path.name.split("of")[-1].removesuffix(".json") for path in folder.glob(f"{name}.rank*of*.json")}
        if there and str(self.world_size) not in there:
            raise UserError(
                f"{folder} holds {name} in the parts of {', '.join(sorted(there))} processes, here are "
                f"{self.world_size}: resume with as many"
            )


class ThinkWorker(ActorRolloutRefWorker):
    """verl's worker with the methods that the trainer calls; they do what ThinkTrainingWorker says."""

    actor_worker_cls = ThinkTrainingWorker

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def think_average(self, decays: dict[str, float]) -> None:
        """Begin averages of the actor's weights, by name."""
        self.actor.average(decays)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def think_state(self) -> dict[str, float]:
        """Every process's sums and distances."""
        return self.actor.state()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def think_kernel(self) -> None:
        """Let the package's kernels compute the log-probs of the policy loss."""
        from rl_think_ext.verl import logprob_kernel

        logprob_kernel.install()

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def think_score(self, data: TensorDict) -> TensorDict | None:
        """Log-probs of given targets; see ThinkTrainingWorker.score."""
        output = self.actor.score(data)
        return output.cpu() if output is not None else None
