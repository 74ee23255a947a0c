"""The short way for plain calls without a gradient: the dispatcher alone takes 50 times the smallest kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from rl_think_ext.kernels import native
from rl_think_ext.kernels.checks import is_scale
from rl_think_ext.kernels.layout import CODES, address, grid
from rl_think_ext.kernels.ops import complain

_PLAIN = (Tensor, nn.Parameter)


def suits(logits: Tensor, labels: Tensor, mask: Tensor | None, temperature: float, softcap: float | None) -> bool:
    """Whether nothing but numbers is asked for, of arguments that are right as they are; all else goes the long way."""
    return (
        not torch.compiler.is_compiling()
        and type(logits) in _PLAIN
        and logits.is_cpu
        and logits.dtype in CODES
        and not (logits.requires_grad and torch.is_grad_enabled())
        and _is_plain(labels, torch.int64)
        and labels.shape == logits.shape[:-1]
        and logits.shape[-1] > 0
        and (mask is None or (_is_plain(mask, torch.bool) and mask.shape == labels.shape))
        and is_scale(temperature)
        and (softcap is None or is_scale(softcap))
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and native.beats_torch()
    )


def _is_plain(x: Tensor, dtype: torch.dtype) -> bool:
    return type(x) is Tensor and x.is_cpu and x.dtype is dtype and x.is_contiguous() and not x.is_neg()


def masked_logprob(
    logits: Tensor, labels: Tensor, mask: Tensor | None, temperature: float, softcap: float | None, entropy: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """See `rl_think_ext.kernels.masked_logprob`."""
    rows = grid(logits)
    make = torch.empty if mask is None else torch.zeros
    logprob = make(labels.shape, dtype=torch.float32, device="cpu")
    entropies = make(labels.shape, dtype=torch.float32, device="cpu") if entropy else None
    bad = native.module().forward(
        CODES[logits.dtype],
        *rows.address,
        logits.shape[-1],
        labels.data_ptr(),
        labels.numel(),
        0,
        0,
        address(mask),
        1.0 / temperature,
        softcap or 0.0,
        logprob.data_ptr(),
        address(entropies),
        0,
        0,
        torch.get_num_threads(),
    )
    if bad != -1:
        complain(bad, labels, None, logits.shape[-1])
    return logprob if entropies is None else (logprob, entropies)
