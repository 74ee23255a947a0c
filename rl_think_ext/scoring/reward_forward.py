"""Scores of rows of ids by a sequence-classification model: its body in its own dtype, its head in float32.

Rows sorted by length and padded on the right, micro-batches bounded in tokens, no grad, no cache, no autocast. A row's
score is that of the model's own forward on this row alone, but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rl_think_ext.errors import UserError

Ids = tuple[int, ...]


class RewardForward:
    """Scores rows of ids.

    Args:
        model: A sequence-classification model in eval mode.
        max_tokens: Tokens of one forward, padding included; a longer row goes alone.
        device: Where the model and the ids go.
        output: The field of the model's output that holds the score.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        max_tokens: int = 16384,
        device: torch.device | str = "cpu",
        output: Literal["logits", "score"] = "logits",
    ) -> None:
        self.model, self.max_tokens, self.output = model.to(device), max_tokens, output
        self.device = torch.device(device)
        config: Any = model.config
        self.pad_id = config.get_text_config().pad_token_id
        # Any other forward looks for padding in its own way: it is shown rows without padding, and one by one where
        # the model knows no padding at all.
        self.split = output == "logits" and _has_plain_forward(model)
        self.head = _float_head(model, hooked=not self.split)

    @torch.no_grad()
    def __call__(self, rows: Sequence[Ids]) -> Tensor:
        """[N] float32 on the CPU, in the order of the rows; not always finite."""
        scores = torch.full((len(rows),), torch.nan)
        for batch in self.batches(rows):
            scores[batch] = self._forward([rows[i] for i in batch])
        return scores

    def noise(self, rows: Sequence[Ids], scores: Tensor, num: int) -> float:
        """The largest difference when `num` of these rows are scored again in other micro-batches; NaN: unknown."""
        company = [i for batch in self.batches(rows) if len(batch) > 1 for i in batch]
        # From the middle of each stretch: the longest row of a batch has no padding, and hardly moves without it.
        step = max(1, len(company) // max(1, num))
        chosen = company[step // 2 :: step][:num]
        pairs = [([rows[i]], i) for i in chosen]
        if not chosen and rows and num and self._most(len(rows[-1])) > 1:
            pairs = [([rows[-1], rows[-1]], len(rows) - 1)]
        with torch.no_grad():
            found = [abs(float(self._forward(batch)[0] - scores[i])) for batch, i in pairs]
        finite = [value for value in found if value < torch.inf]
        return max(finite, default=torch.nan)

    def batches(self, rows: Sequence[Ids]) -> Iterator[list[int]]:
        """Row numbers of each forward, longest first, so that the largest allocation comes first."""
        batch: list[int] = []
        for i in sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i)):
            longest = len(rows[batch[0]]) if batch else 0
            if batch and (len(batch) >= self._most(longest) or (not self.split and len(rows[i]) != longest)):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _most(self, length: int) -> int:
        """Rows of this length that one forward takes."""
        if not self.split and self.pad_id is None:
            return 1
        return max(1, self.max_tokens // length)

    def _forward(self, rows: Sequence[Ids]) -> Tensor:
        """[rows] float32 on the CPU."""
        fill = 0 if self.pad_id is None else self.pad_id
        longest = max(map(len, rows))
        ids = torch.tensor([row + (fill,) * (longest - len(row)) for row in rows], device=self.device)
        length = torch.tensor([len(row) for row in rows], device=self.device)
        seen = (torch.arange(longest, device=self.device) < length[:, None]).long()
        # A trainer's autocast would round the head.
        with torch.autocast(self.device.type, enabled=False):
            if self.split:
                return self._split_forward(rows, ids, seen).float().cpu()
            found = getattr(self.model(input_ids=ids, attention_mask=seen), self.output, None)
        if not isinstance(found, Tensor) or found.numel() != len(rows):
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise UserError(
                f"`output: {self.output}`: the reward model gives {got} for {len(rows)} rows, no score each"
            )
        return found.reshape(-1).float().cpu()

    def _split_forward(self, rows: Sequence[Ids], ids: Tensor, seen: Tensor) -> Tensor:
        """[rows] of the body, and of the head on one position of each row."""
        body: Any = self.model.base_model
        hidden = body(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state
        last = torch.tensor([_scored_place(row, self.pad_id) for row in rows], device=hidden.device)
        hidden = hidden[torch.arange(len(rows), device=hidden.device), last]
        assert self.head is not None
        return self.head(hidden.to(self.head.weight.dtype))[:, 0]


def _scored_place(row: Ids, pad_id: int | None) -> int:
    """Where a row is scored: as in transformers, at its last id that is not the model's padding.

    Where a model pads with the id that its template ends on, that is the place before it: so it was trained.
    """
    return next((i for i in range(len(row) - 1, -1, -1) if row[i] != pad_id), 0)


def _has_plain_forward(model: nn.Module) -> bool:
    """Whether this is a body with a linear `score` above it, run by the forward that transformers gives them all."""
    from transformers.modeling_layers import GenericForSequenceClassification as Generic

    return type(model).forward is Generic.forward and isinstance(model.score, nn.Linear)


def _float_head(model: nn.Module, *, hooked: bool) -> Any:
    """The head in float32 (or wider), or None where it is not found by its usual names.

    A head that the model's own forward calls gets a hook that casts what comes in.
    """
    found = next((getattr(model, name) for name in ("score", "classifier") if hasattr(model, name)), None)
    dtype = next((p.dtype for p in found.parameters()), None) if isinstance(found, nn.Module) else None
    if found is None or dtype is None:
        return None
    wide = torch.promote_types(dtype, torch.float32)
    found.to(wide)
    if hooked and wide != dtype:

        def cast(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(x.to(wide) if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)

        found.register_forward_pre_hook(cast)
    return found
