"""RLPTrainer: RLP under verl, by `trainer.v1.trainer_mode=rlp`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import transfer_queue as tq
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass

from rl_think_ext.data.reader import Reader
from rl_think_ext.methods.alarms import Alarms
from rl_think_ext.methods.rlp import RLPConfig, spread
from rl_think_ext.scoring.gain import Gains, GainScorer, Rollout, gain_metrics
from rl_think_ext.scoring.likelihood import Query
from rl_think_ext.scoring.sample import ends_of
from rl_think_ext.template import TagIds
from rl_think_ext.verl.likelihood import RemoteLikelihood, Sampled
from rl_think_ext.verl.rlp_checks import check_config
from rl_think_ext.verl.trainer import UNSCORABLE, ThinkTrainer, nested

PREFIX = "rlp/"


class RLPTrainer(ThinkTrainer):
    """Rewards thoughts by the information gain (RLP, arXiv 2510.01265, eq. 5), scored by the actor's own workers.

    The forward that gives verl the log-probs of the thoughts scores the targets behind them, too. The baseline's
    weights are averages that live in the workers; no reference worker is made.
    """

    method = "rlp"
    settings: RLPConfig
    actor_rollout_wg: Any

    def check(self) -> list[str]:
        """See `rlp_checks`."""
        return check_config(self.config, self.settings)

    def watch(self) -> Callable[[Mapping[str, float | None]], list[str]]:
        """What says that a run is dying quietly; the entropy is among verl's own metrics."""
        alarms = Alarms()
        return lambda metrics: alarms({**metrics, "entropy": metrics.get("actor/entropy")})

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        model = omega_conf_to_dataclass(self.config.actor_rollout_ref.model)
        self.tags = TagIds.of(self.tokenizer)
        self.reader = Reader(self.tokenizer, self.settings, self.tags)
        self._ends = ends_of(model, self.tokenizer, self.tags)
        self._positions = self.positions()

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        # The tag that closes a thought that was cut off, and the targets that are read.
        extra = len(self.tags.close) + self.settings.num_target_tokens - 1
        for dataset in (self.train_dataset, self.val_dataset):
            if hasattr(dataset, "check_room"):
                dataset.check_room(self._positions, self.config.data.max_response_length, extra)

    def _setup(self) -> None:
        self.config.reward.num_workers = 1  # verl starts them, and nobody will ask them
        super()._setup()
        # Without workers for rewards verl asks the trainer for them, in training and in validation.
        self.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=None)

    def _load_checkpoint(self) -> None:
        """The averages begin at the loaded model, or are taken up from the checkpoint with it."""
        if self.settings.averages:
            self.actor_rollout_wg.think_average(self.settings.averages)
        super()._load_checkpoint()
        workers = self.actor_rollout_wg
        ranks = workers._dispatch_info.get("actor") or workers._query_dispatch_info("actor")
        self.likelihood = RemoteLikelihood(
            workers.think_score, max(ranks) + 1, self.settings.max_tokens_per_batch, self._positions
        )
        baseline = {"ema": "ema", "init": "frozen"}.get(self.settings.baseline)
        self.scorer = GainScorer(
            self.settings,
            self.likelihood,
            self.tags,
            partial(self.likelihood.weights, baseline) if baseline else None,
            partial(self.likelihood.weights, "frozen") if self.settings.frozen_gain else None,
            self._positions,
        )
        self._finished = time.monotonic()

    def _compute_reward_colocate(self, batch: Any, metrics: dict[str, Any] | None = None) -> Any:
        """Validation's rewards; those of training come with the log-probs of the thoughts."""
        if metrics is not None:
            return batch
        kept = read_rows(batch)
        gains = self.scorer(self._rollouts(kept))
        fields = tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=["responses", "extra_fields"]
        )
        extra = [
            {**_plain(value), "reward_extra_info": info}
            for value, info in zip(fields["extra_fields"], self._extra(gains), strict=True)
        ]
        rewards = [torch.zeros(len(response)) for response in fields["responses"].unbind()]
        for reward, score in zip(rewards, gains.scores(), strict=True):
            reward[-1] = 0.0 if score.value is None else score.value
        written = tu.get_tensordict({"rm_scores": nested(rewards), "extra_fields": extra})
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=written)
        return batch

    def _extra(self, gains: Gains) -> list[dict[str, Any]]:
        """What validation reports of each sample: the same names for all, whether it has a score or not."""
        names = ["gain", "reasoned", "accuracy", "length"]
        names += ["baseline"] if self.settings.baseline != "none" else []
        names += ["frozen", "frozen_gain"] if self.settings.frozen_gain else []
        columns = [gains.column(name).tolist() for name in names]
        return [
            {name: _number(value) for name, value in zip(names, values, strict=True)} | {UNSCORABLE: score.reason or ""}
            for values, score in zip(zip(*columns, strict=True), gains.scores(), strict=True)
        ]

    def _compute_old_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """verl's own log-probs and entropies of the thoughts, and the rewards, out of one forward."""
        started = time.monotonic()
        rows, kept = self.real_rows(batch), read_rows(batch)
        rollouts = dict(zip(rows, self._rollouts([kept[i] for i in rows]), strict=True))
        sampled = [_sampled(row, rollouts.get(i)) for i, row in enumerate(kept)]
        with self._responding(sampled):
            batch = super()._compute_old_log_prob(batch, metrics)
        gains = self.scorer(list(rollouts.values()))
        groups = self.groups(batch, rows)
        scores = dict(zip(rows, gains.scores(), strict=True))
        shown = dict(zip(rows, columns([kept[i] for i in rows], gains), strict=True))
        self.settle(batch, scores, metrics, quiet(groups, rows, gains), shown)
        found = group_metrics(groups, rows, gains, self.config.actor_rollout_ref.rollout.n) | self._cost(started)
        found |= weights_metrics(self.actor_rollout_wg.think_state())
        metrics.update({PREFIX + name: value for name, value in found.items()})
        if self.door.log_completions:
            self.record.rollouts(self.global_steps, [kept[i] for i in rows], list(rollouts.values()), gains)
        return batch

    @contextmanager
    def _responding(self, sampled: Sequence[Sampled]) -> Iterator[None]:
        """Inside, verl's question for log-probs is answered by the forward that scores the targets."""
        workers = self.actor_rollout_wg

        def compute_log_prob(batch: Any) -> Any:
            found = self.likelihood.respond(sampled, batch.extra_info["temperature"])
            fields = {
                "log_probs": nested([one.logprob for one in found]),
                "entropy": nested([one.entropy for one in found]),
            }
            tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=tu.get_tensordict(fields))
            return batch

        self.actor_rollout_wg = SimpleNamespace(compute_log_prob=compute_log_prob)
        try:
            yield
        finally:
            self.actor_rollout_wg = workers

    def _rollouts(self, kept: Sequence[Mapping[str, Any]]) -> list[Rollout]:
        return [self.reader.rollout(row, row["completion_ids"], self._ends, row["where"]) for row in kept]

    def _cost(self, started: float) -> dict[str, float]:
        """Seconds from the first log-prob to the last reward, and their share of the time since the last step."""
        now = time.monotonic()
        share = (now - started) / max(now - self._finished, 1e-9)
        self._finished = now
        return {"scoring_seconds": now - started, "scoring_share": share}


def read_rows(batch: Any) -> list[dict[str, Any]]:
    """The rows of the dataset behind a batch's samples, with the ids that were sampled as `completion_ids`."""
    data = tq.kv_batch_get(
        keys=batch.keys, partition_id=batch.partition_id, select_fields=["prompts", "responses", "think_row"]
    )
    ids = zip(data["prompts"].unbind(), data["responses"].unbind(), strict=True)
    rows = [_plain(row) for row in data["think_row"]]
    return [
        # All the targets that the row has: the reader takes as many as the settings say, and records keep all.
        {**row, "target_ids": row["all_target_ids"], "prompt_ids": prompt.tolist(), "completion_ids": response.tolist()}
        for row, (prompt, response) in zip(rows, ids, strict=True)
    ]


def _plain(value: Any) -> dict[str, Any]:
    return dict(tu.unwrap_non_tensor_data(value) or {})


def _sampled(row: Mapping[str, Any], rollout: Rollout | None) -> Sampled:
    """A sample as the fused forward takes it; a row of verl's padding has no rollout."""
    query = Query(rollout.prompt + rollout.thought.ids, rollout.target) if rollout and rollout.target else None
    return Sampled(tuple(row["prompt_ids"]), tuple(row["completion_ids"]), query)


_SHOWN = ("gain", "reasoned", "baseline", "frozen", "frozen_gain", "accuracy", "baseline_accuracy")
_IDS = ("prompt_ids", "context_ids", "target_ids", "completion_ids")


def columns(kept: Sequence[Mapping[str, Any]], gains: Gains) -> list[dict[str, Any]]:
    """What the dumps of rollouts say of each sample beside its text."""
    numbers = [gains.column(name).tolist() for name in _SHOWN]
    return [
        {name: row.get(name) for name in ("id", "context", "target", *_IDS)}
        | {name: _number(value) for name, value in zip(_SHOWN, values, strict=True)}
        for row, values in zip(kept, zip(*numbers, strict=True), strict=True)
    ]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def quiet(groups: Sequence[Sequence[int]], rows: Sequence[int], gains: Gains) -> list[int]:
    """The rows of groups whose reasoned scores lie within the scorer's noise: they count as equal (F47)."""
    place = {row: i for i, row in enumerate(rows)}
    reasoned = torch.where(gains.column("reason") < 0, gains.column("reasoned"), torch.nan)
    found: list[int] = []
    for group in groups:
        if float(spread(reasoned[[place[i] for i in group]], len(group))) <= gains.noise:
            found += group
    return found


def group_metrics(
    groups: Sequence[Sequence[int]], rows: Sequence[int], gains: Gains, group_size: int
) -> dict[str, float]:
    """What a step says about itself; a group whose sampling failed in part counts with what there is of it."""
    place = {row: i for i, row in enumerate(rows)}
    size = max(group_size, *map(len, groups))
    table = gains.table.new_full((len(groups) * size, gains.table.shape[1]), torch.nan)
    for number, group in enumerate(groups):
        table[number * size : number * size + len(group)] = gains.table[[place[i] for i in group]]
    # What was filled up is no sample: only what compares the samples of a group may see it.
    padded = gain_metrics(Gains(table, gains.noise), size)
    within = ("gain_spread", "zero_variance_groups", "score_noise_to_spread")
    return gain_metrics(gains, 1) | {name: padded[name] for name in within}


def weights_metrics(states: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Checksums, distance and updates of the whole weights out of those of every process's part."""
    total = {name: sum(state[name] for state in states) for name in states[0] if not name.startswith("frozen_")}
    if "ema_distance" in total:
        total["ema_distance"] = math.sqrt(total["ema_distance"])
        total["ema_updates"] = states[0]["ema_updates"]
    return total
