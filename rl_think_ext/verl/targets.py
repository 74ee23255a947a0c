"""Log-probs of given targets out of verl's own forward, at temperature 1 whatever the sampling temperature is.

One forward of the actor answers for the thought (at the sampling temperature, by verl's own function) and for the
targets behind it. What it answers has the shape of verl's log-probs: one number per token of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu

from rl_think_ext.errors import UserError
from rl_think_ext.scoring.likelihood import Scored, target_scores

FIELDS = tuple(f"target_{name}" for name in Scored._fields)


class Row(NamedTuple):
    """A sequence of ids, the last `num_targets` of which are predicted."""

    ids: tuple[int, ...]
    num_targets: int

    @property
    def length(self) -> int:
        """The ids that are read: the last target is predicted, never read."""
        return len(self.ids) - bool(self.num_targets)


def pack(rows: Sequence[Row], **settings: Any) -> TensorDict:
    """Rows as verl's engine takes them: jagged ids, positions, labels, and a mask of the positions that predict.

    Args:
        rows: N rows.
        settings: What the forward is told beside them.
    """
    fields: dict[str, list[Tensor]] = {name: [] for name in ("input_ids", "position_ids", "labels", "loss_mask")}
    for row in rows:
        length, ids = row.length, torch.tensor(row.ids)
        fields["input_ids"].append(ids[:length])
        fields["position_ids"].append(torch.arange(length))
        # A row without a target has no label behind its last id: any will do.
        fields["labels"].append(torch.cat([ids[1:], ids[:1]])[:length])
        fields["loss_mask"].append((torch.arange(length) >= length - row.num_targets).long())
    nested = {name: torch.nested.as_nested_tensor(values, layout=torch.jagged) for name, values in fields.items()}
    return tu.get_tensordict(nested, settings)


@contextmanager
def answered(engine: Any, forbid_first: int | None, whole: bool) -> Iterator[None]:
    """Inside, a forward of the engine answers for the targets.

    Args:
        engine: verl's FSDP engine with a language model.
        forbid_first: An id that is ruled out at each row's first target in "target_restricted" and "target_hit".
        whole: Also answer what the engine answers by itself: log-probs and entropy of every id of a row.
    """
    own = engine.prepare_model_outputs

    def outputs(output: Any, output_args: Any, micro_batch: TensorDict, logits_processor_func: Any) -> dict[str, Any]:
        found = of_logits(output.logits, micro_batch, forbid_first)
        if whole:
            found |= own(
                output=output,
                output_args=output_args,
                micro_batch=micro_batch,
                logits_processor_func=logits_processor_func,
            )
        return found

    engine.prepare_model_outputs = outputs
    try:
        yield
    finally:
        del engine.prepare_model_outputs


def of_logits(logits: Tensor, micro_batch: TensorDict, forbid_first: int | None) -> dict[str, Tensor]:
    """The fields of Scored for a micro-batch, each jagged like its ids, 0 where nothing is predicted.

    Args:
        logits: [1, tokens, V] where rows stand one behind the other, [rows, longest, V] where they are padded.
        micro_batch: What `pack` made.
        forbid_first: See `answered`.
    """
    offsets, mask = micro_batch["input_ids"].offsets(), micro_batch["loss_mask"].values()
    at = mask.nonzero()[:, 0]
    row = torch.searchsorted(offsets, at, right=True) - 1
    if hasattr(logits, "full_tensor"):
        logits = logits.full_tensor()
    packed = tu.get_non_tensor_data(micro_batch, "use_remove_padding", True)
    predicting = logits[0, at] if packed else logits[row, at - offsets[row]]
    first = (torch.cat([row.new_ones(1), row.diff()]).nonzero()[:, 0] if len(row) else row,)
    scores = target_scores(predicting, micro_batch["labels"].values()[at], None, first, forbid_first)
    flat = scores.new_zeros(len(FIELDS), len(mask))
    flat[:, at] = scores
    return {
        name: torch.nested.nested_tensor_from_jagged(values, offsets)
        for name, values in zip(FIELDS, flat.unbind(), strict=True)
    }


def refuse(engine_config: Any) -> None:
    """Refuse forwards that do not show their logits, or only a part of them.

    Raises:
        UserError: fused kernels, a split sequence, or another way of splitting weights than FSDP2.
    """
    if getattr(engine_config, "use_fused_kernels", False):
        raise UserError("actor_rollout_ref.model.use_fused_kernels: true hides the logits that the reward needs: false")
    size = getattr(engine_config, "ulysses_sequence_parallel_size", 1)
    if size > 1:
        raise UserError(
            f"actor_rollout_ref.actor.ulysses_sequence_parallel_size: {size} splits a sequence over processes, and "
            "the reward of a thought needs all of it in one: say 1"
        )
    if engine_config.strategy != "fsdp2":
        raise UserError(
            f"actor_rollout_ref.actor.strategy: {engine_config.strategy} cannot be scored with averaged weights: "
            "say fsdp2"
        )
