"""TransferQueue in a dictionary: what verl's trainer and its workers exchange, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu


@dataclass
class FakeQueue:
    """Samples by key, each a dict of its fields."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def kv_batch_get(self, keys: Sequence[str], partition_id: str, select_fields: Sequence[str] | None = None) -> Any:
        """The fields that all of the samples have, as a TensorDict."""
        names = select_fields or sorted(self.rows[keys[0]])
        found: dict[str, Any] = {}
        for name in names:
            values = [self.rows[key][name] for key in keys if name in self.rows[key]]
            if len(values) == len(keys):
                found[name] = _column(values)
        return tu.get_tensordict(found)

    def kv_batch_put(self, keys: Sequence[str], partition_id: str, fields: Any, tags: Any = None) -> KVBatchMeta:
        """Overwrite fields of the samples; which they are."""
        for name, values in fields.items():
            rows = values.unbind() if isinstance(values, torch.Tensor) else values.tolist()
            for key, value in zip(keys, rows, strict=True):
                self.rows.setdefault(key, {})[name] = value
        return KVBatchMeta(keys=list(keys), tags=[{} for _ in keys], partition_id=partition_id)

    def batch(self, padding: Sequence[str] = ()) -> KVBatchMeta:
        """All samples; `padding` names those that verl made up."""
        tags = [{"is_padding": key in padding, "min_global_steps": 0, "max_global_steps": 0} for key in self.rows]
        return KVBatchMeta(keys=list(self.rows), tags=tags, partition_id="train")


def _column(values: list[Any]) -> Any:
    if isinstance(values[0], torch.Tensor):
        return torch.nested.as_nested_tensor(values, layout=torch.jagged)
    return values
