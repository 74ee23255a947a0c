"""verl's workers and queue in this process, for RLP's trainer without Ray."""

from __future__ import annotations

from typing import Any

import torch
from fake_queue import FakeQueue
from transformers import Qwen3ForCausalLM

from rl_think_ext.verl.targets import FIELDS
from rl_think_ext.verl.trainer import nested


class Workers:
    """Answers what is packed, row by row, as verl's workers do; the weights named "half" are half as sure."""

    def __init__(self, model: Qwen3ForCausalLM, shares: int) -> None:
        self.model, self.shares = model, shares
        self.asked: list[tuple[str, list[tuple[int, ...]]]] = []

    @torch.no_grad()
    def __call__(self, data: Any) -> dict[str, torch.Tensor]:
        rows = data["input_ids"].unbind()
        assert len(rows) % self.shares == 0
        assert data["max_token_len_per_gpu"] >= max(map(len, rows))
        self.asked.append((data["weights"], [tuple(row.tolist()) for row in rows]))
        found: dict[str, list[torch.Tensor]] = {name: [] for name in (*FIELDS, "log_probs", "entropy")}
        for ids, labels, mask in zip(rows, data["labels"].unbind(), data["loss_mask"].unbind(), strict=True):
            logits = self.model(input_ids=ids[None]).logits[0] * (0.5 if data["weights"] == "half" else 1.0)
            for name, values in self._row(logits, ids, labels, mask.bool(), data).items():
                found[name].append(values)
        return {name: nested(values) for name, values in found.items()}

    def _row(self, logits: Any, ids: Any, labels: Any, mask: Any, data: Any) -> dict[str, torch.Tensor]:
        logprob, allowed = logits.log_softmax(-1), logits.clone()
        if data["forbid_first"] >= 0 and mask.any():
            allowed[mask.nonzero()[0, 0], data["forbid_first"]] = -torch.inf
        sampled = (logits / data["temperature"]).log_softmax(-1)
        return {
            "target_logprob": logprob.gather(-1, labels[:, None])[:, 0] * mask,
            "target_restricted": (allowed.log_softmax(-1).gather(-1, labels[:, None])[:, 0]).where(mask, 0.0),
            "target_hit": (allowed.argmax(-1) == labels) * mask.float(),
            "log_probs": sampled.gather(-1, ids.roll(-1)[:, None])[:, 0],
            "entropy": -(sampled.exp() * sampled).sum(-1),
        }


class Queue(FakeQueue):
    """Answers a put as TransferQueue does, with the keys."""

    def kv_batch_put(self, keys: Any, partition_id: str, fields: Any, tags: Any = None) -> Any:
        super().kv_batch_put(keys, partition_id, fields, tags)
        return self.batch([key for key in self.rows if key.startswith("pad")])
