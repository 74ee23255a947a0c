"""The readable reference: rows that are asked for, in float32, by torch operations that autograd knows."""

from __future__ import annotations

import torch
from torch import Tensor

_ELEMENTS = 2**21


def masked_logprob(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    temperature: float,
    softcap: float | None,
    entropy: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """See `rl_think_ext.kernels.masked_logprob`; the arguments are checked."""
    rows_NV, labels_N = _rows(logits, mask), _rows(labels[..., None], mask)[:, 0]
    return _finish(rows_NV, labels_N, labels.shape, mask, temperature, softcap, entropy)


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
    logits_NV = torch.nn.functional.linear(_wide(rows_ND), _wide(weight), None if bias is None else _wide(bias))
    return _finish(logits_NV, labels_N, labels.shape, mask, temperature, softcap, entropy)


def _rows(x: Tensor, mask: Tensor | None) -> Tensor:
    return x.reshape(-1, x.shape[-1]) if mask is None else x[mask]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


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
    z_NV = _wide(logits_NV)
    if softcap is not None:
        z_NV = softcap * torch.tanh(z_NV / softcap)
    if temperature != 1.0:
        z_NV = z_NV / temperature
    logprob_NV = torch.log_softmax(z_NV, dim=-1)
    logprob_N = logprob_NV.gather(-1, labels_N[:, None])[:, 0]
    if not entropy:
        return logprob_N, logprob_N.new_empty(0)
    with torch.no_grad():
        # p = 0 contributes nothing; written out, 0 * -inf would be NaN.
        return logprob_N, -torch.where(logprob_NV.isneginf(), 0.0, logprob_NV.exp() * logprob_NV).sum(-1)


def _scatter(values_N: Tensor, shape: torch.Size, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values_N.reshape(shape)
    return values_N.new_zeros(shape).masked_scatter(mask, values_N)
