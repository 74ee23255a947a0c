"""Log-probs of given targets behind given prefixes, at temperature 1, through the model's own forward.

The path: rows sorted by length, left-padded micro-batches bounded in tokens, the head on the target positions only
(`logits_to_keep`), log-softmax in float32 through `kernels.masked_logprob`; eval mode, no grad, no cache. Prefix and
target are ids and are joined as ids: nothing is decoded, so no boundary can move (F31).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rl_think_ext.kernels import masked_logprob


class Query(NamedTuple):
    """Ids of a prefix and of the target behind it; both hold at least one id."""

    prefix: tuple[int, ...]
    target: tuple[int, ...]


def check_queries(queries: Sequence[Query]) -> None:
    """Refuse what cannot be scored.

    Raises:
        ValueError: an empty prefix or target, naming the row.
    """
    for row, query in enumerate(queries):
        if not query.prefix or not query.target:
            raise ValueError(f"row {row}: prefix and target need at least one id each, got {query}")


class Scored(NamedTuple):
    """What a model says of N rows of targets, each [N, K] float32 on the CPU, NaN behind a row's own targets.

    `restricted` is `logprob` with one id ruled out at each row's first target, the rest renormalised; the same where
    none is ruled out. `hit` is 1 where greedy decoding, among the ids that are allowed there, would take the target.
    """

    logprob: Tensor
    restricted: Tensor
    hit: Tensor


@dataclass(frozen=True)
class Likelihood:
    """Scores queries under the weights that the model holds at the moment of the call.

    Args:
        model: A causal language model, also one that a trainer has patched or wrapped with an adapter; its plain
            forward is called, never a patched head (that one works at the sampling temperature).
        pad_id: Any valid id; padded positions are masked.
        max_tokens: Tokens of one forward, padding included; a longer row goes alone.
        autocast: Makes the context in which the body runs in the training dtype.
        device: Where the ids go.
    """

    model: nn.Module
    pad_id: int
    max_tokens: int = 16384
    autocast: Any = nullcontext
    device: torch.device | str = "cpu"
    _warned: list[str] = field(default_factory=list, compare=False, repr=False)

    def __call__(self, queries: Sequence[Query], forbid_first: int | None = None) -> Scored:
        """Log-probs of the targets, plain and with one id ruled out at each row's first target.

        Args:
            queries: N prefixes and targets; K is the longest target.
            forbid_first: An id that is taken out of the distribution of the first target, which is renormalised.

        Returns:
            A row's values depend on the rows beside it only by the rounding of the model's dtype; equal rows are
            scored once and get equal numbers to the bit (F47).

        Raises:
            ValueError: an empty prefix or target, naming the row.
        """
        check_queries(queries)
        unique = list(dict.fromkeys(queries))
        width = max((len(q.target) for q in unique), default=0)
        out = torch.full((len(Scored._fields), len(unique), width), torch.nan)
        with torch.no_grad(), eval_mode(self.model):
            for rows in self._batches(unique):
                scores = self._forward([unique[i] for i in rows], forbid_first)
                for column, i in enumerate(rows):
                    num = len(unique[i].target)
                    out[:, i, :num] = scores[:, column, scores.shape[-1] - num :]
        index = {query: i for i, query in enumerate(unique)}
        return Scored(*out[:, [index[q] for q in queries]])

    def with_gradient(self, queries: Sequence[Query]) -> Tensor:
        """Log-probs of the whole targets, with their graph, for a loss: N queries -> [N] float32 on the device.

        The model stays in the mode that it is in.

        Raises:
            ValueError: an empty prefix or target, naming the row.
        """
        check_queries(queries)
        parts, order = [torch.zeros(0, device=self.device)], []
        for rows in self._batches(queries):
            batch = [queries[i] for i in rows]
            ids, seen = _left_padded([q.prefix + q.target[:-1] for q in batch], self.pad_id)
            labels, mask = _left_padded([q.target for q in batch], 0)
            logits = self._logits(ids.to(self.device), seen.to(self.device), labels.shape[1])
            logprob = masked_logprob(logits, labels.to(logits.device), mask.to(logits.device).bool())
            assert isinstance(logprob, Tensor)
            parts.append(logprob.sum(-1))
            order += rows
        place = {row: at for at, row in enumerate(order)}
        return torch.cat(parts)[[place[row] for row in range(len(queries))]]

    def _batches(self, queries: Sequence[Query]) -> Iterator[list[int]]:
        """Row numbers of each forward, longest first, so that the largest allocation comes first."""
        length = [len(q.prefix) + len(q.target) - 1 for q in queries]
        uniform = "position_ids" not in forward_arguments(self.model)
        batch: list[int] = []
        for i in sorted(range(len(queries)), key=lambda i: (-length[i], -len(queries[i].target), i)):
            full = batch and (len(batch) + 1) * length[batch[0]] > self.max_tokens
            # Without position ids, left padding would shift absolute positions: only equal lengths share a forward.
            if full or (batch and uniform and length[i] != length[batch[0]]):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _forward(self, batch: Sequence[Query], forbid_first: int | None) -> Tensor:
        """The fields of Scored, [3, rows, K] on the CPU, each row's targets at its right end."""
        # The last target is predicted, never read: it is no part of the input.
        ids, seen = _left_padded([q.prefix + q.target[:-1] for q in batch], self.pad_id)
        labels, mask = _left_padded([q.target for q in batch], 0)
        logits = self._logits(ids.to(self.device), seen.to(self.device), labels.shape[1])
        labels, mask = labels.to(logits.device), mask.to(logits.device).bool()
        rows, first = torch.arange(len(batch), device=mask.device), mask.int().argmax(-1)
        # Without a mask no row is copied.
        return target_scores(logits, labels, None if bool(mask.all()) else mask, (rows, first), forbid_first).cpu()

    def _logits(self, ids: Tensor, seen: Tensor, width: int) -> Tensor:
        """[rows, width, V]: the head on the last `width` positions only, where the model can do that."""
        known = forward_arguments(self.model)
        extra: dict[str, Any] = {}
        if "position_ids" in known:
            extra["position_ids"] = (seen.cumsum(-1) - 1).clamp(min=0)
        if "logits_to_keep" in known:
            extra["logits_to_keep"] = width
        if "use_cache" in known:
            extra["use_cache"] = False
        with self.autocast():
            logits = self.model(input_ids=ids, attention_mask=seen, **extra).logits
        if logits.shape[1] != width:
            self._warn_once(
                "this model computes logits at every position (no `logits_to_keep`): scoring needs more memory"
            )
            logits = logits[:, -width:]
        return logits

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.append(text)
            warnings.warn(text, stacklevel=2)


def target_scores(
    logits: Tensor, labels: Tensor, mask: Tensor | None, first: tuple[Tensor, ...], forbid_first: int | None
) -> Tensor:
    """The fields of Scored out of logits, at temperature 1: [3, ...] float32.

    Args:
        logits: [..., V] in the model's own dtype.
        labels: [...] targets; `mask` [...] bool, True at targets, or None for all.
        first: The index of each row's first target, as it would be written in brackets.
        forbid_first: An id that is taken out of the distribution there, or None.
    """
    plain = masked_logprob(logits, labels, mask)
    assert isinstance(plain, Tensor)
    restricted, hit = plain, _is_best(logits, labels)
    if forbid_first is not None:
        logits_first = logits[first]  # a copy
        logits_first[:, forbid_first] = -torch.inf
        restricted = plain.clone()
        restricted[first] = masked_logprob(logits_first, labels[first])  # type: ignore[assignment]
        hit[first] = _is_best(logits_first, labels[first])
    return torch.stack([plain, restricted, hit])


def _is_best(logits: Tensor, labels: Tensor) -> Tensor:
    """1.0 where greedy decoding would take the label; [..., V] and [...] to [...]. A tie has one winner."""
    return (logits.argmax(-1) == labels).float()


def _left_padded(rows: Sequence[tuple[int, ...]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and 0/1 mask, [rows, longest]; every row ends at the right edge, where the targets are."""
    longest = max(map(len, rows))
    ids = torch.tensor([(pad_id,) * (longest - len(row)) + row for row in rows])
    seen = torch.tensor([(0,) * (longest - len(row)) + (1,) * len(row) for row in rows])
    return ids, seen


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off, functional dropout of attention too, and every module's own mode back afterwards, come what may."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def forward_arguments(model: nn.Module) -> frozenset[str]:
    """The argument names of the language model's own forward, looked up below wrappers and adapters."""
    inner: Any = model
    while isinstance(getattr(inner, "module", None), nn.Module):
        inner = inner.module
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    return frozenset(inspect.signature(inner.forward).parameters)
