"""The readable reference: rows that are asked for, in float32, by torch operations that autograd knows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rl_think_ext.kernels.ops import GradientMemory

_ELEMENTS = 2**21


def masked_logprob(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    temperature: float,
    softcap: float | None,
    entropy: bool,
    backward_out: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """See `rl_think_ext.kernels.masked_logprob`; the arguments are checked."""
    if backward_out is not None:
        logits = _GradientInto.apply(logits, backward_out)
    rows_NV, labels_N = _rows(logits, mask), _rows(labels[..., None], mask)[:, 0]
    return _finish(rows_NV, labels_N, labels.shape, mask, temperature, softcap, entropy)


class _GradientInto(torch.autograd.Function):
    """The identity; its gradient is handed on in memory that somebody else brought."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, out: Tensor) -> Tensor:
        ctx.memory = GradientMemory(out, logits.is_leaf)
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.memory.check()
        ctx.memory.out.copy_(grad)
        return ctx.memory.handed_on(), None


def partials(
    logits: Tensor, labels: Tensor, mask: Tensor | None, temperature: float, softcap: float | None, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `rl_think_ext.kernels.logprob_partials`; the arguments are checked."""
    z_NV = _scaled(_rows(logits, mask), temperature, softcap)
    column_N = _rows(labels[..., None], mask)[:, 0] - first
    here_N = (column_N >= 0) & (column_N < z_NV.shape[-1])
    label_N = z_NV.gather(-1, column_N.where(here_N, 0)[:, None])[:, 0].where(here_N, 0.0)
    highest_N = z_NV.amax(-1)
    sum_N = (z_NV - highest_N.where(highest_N != -torch.inf, 0.0)[:, None]).exp().sum(-1)
    parts = (highest_N * temperature, sum_N, label_N)
    first_part, second, third = (_scatter(part_N, labels.shape, mask) for part_N in parts)
    return first_part, second, third


def linear_masked_logprob(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    entropy: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """See `rl_think_ext.kernels.linear_masked_logprob`; the arguments are checked."""
    rows_ND, labels_N = _rows(hidden, mask), _rows(labels[..., None], mask)[:, 0]
    with torch.autocast(hidden.device.type, enabled=False):  # the inputs are cast already; the product stays float32
        logits_NV = torch.nn.functional.linear(_wide(rows_ND), _wide(weight), None if bias is None else _wide(bias))
    return _finish(logits_NV, labels_N, labels.shape, mask, temperature, softcap, entropy)


def _rows(x: Tensor, mask: Tensor | None) -> Tensor:
    return x.reshape(-1, x.shape[-1]) if mask is None else x[mask]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _scaled(logits_NV: Tensor, temperature: float, softcap: float | None) -> Tensor:
    z_NV = _wide(logits_NV)
    if softcap is not None:
        z_NV = softcap * torch.tanh(z_NV / softcap)
    return z_NV if temperature == 1.0 else z_NV / temperature


def _finish(
    logits_NV: Tensor,
    labels_N: Tensor,
    shape: torch.Size,
    mask: Tensor | None,
    temperature: float,
    softcap: float | None,
    entropy: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    # A few rows at a time: the temporaries stay in cache, and are not paid for again as fresh pages.
    step = max(1, _ELEMENTS // max(1, logits_NV.shape[-1]))
    parts = [
        _rows_of_one_step(logits_NV[i : i + step], labels_N[i : i + step], temperature, softcap, entropy)
        for i in range(0, max(1, labels_N.shape[0]), step)
    ]
    logprob_N, entropy_N = (torch.cat(column) for column in zip(*parts, strict=True))
    out = _scatter(logprob_N, shape, mask)
    return (out, _scatter(entropy_N, shape, mask)) if entropy else out


def _rows_of_one_step(
    logits_NV: Tensor, labels_N: Tensor, temperature: float, softcap: float | None, entropy: bool
) -> tuple[Tensor, Tensor]:
    """Log-prob [N], and entropy [N] or an empty tensor."""
    z_NV = _scaled(logits_NV, temperature, softcap)
    logprob_NV = torch.log_softmax(z_NV, dim=-1)
    logprob_N = logprob_NV.gather(-1, labels_N[:, None])[:, 0]
    # Differs from log_softmax: a row that is ruled out as a whole is impossible, not unknown.
    logprob_N = logprob_N.where(~z_NV.isneginf().all(-1), -torch.inf)
    if not entropy:
        return logprob_N, logprob_N.new_empty(0)
    with torch.no_grad():
        # p = 0 contributes nothing; written out, 0 * -inf would be NaN.
        return logprob_N, -torch.where(logprob_NV.isneginf(), 0.0, logprob_NV.exp() * logprob_NV).sum(-1)


def _scatter(values_N: Tensor, shape: torch.Size, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values_N.reshape(shape)
    return values_N.new_zeros(shape).masked_scatter(mask, values_N)
