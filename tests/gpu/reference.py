"""What the tests on a GPU compare with: plain arithmetic in float64, on the GPU itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from rl_think_ext.kernels import available_backends

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of a gradient, relative by norm: float32 arithmetic, and one rounding to a 16-bit dtype.
GRADIENT = {torch.float32: 1e-6, torch.bfloat16: 3e-3, torch.float16: 6e-4}
# Temperature and soft cap.
NUMBERS = ((1.0, None), (0.7, None), (2.0, 5.0), (1.0, 30.0))


def need_gpu() -> None:
    """Skip a whole module where there is no GPU, or no module that was compiled for one; collecting it works anyway."""
    if not torch.cuda.is_available():
        pytest.skip("gpu: no GPU here", allow_module_level=True)
    if "cuda" not in available_backends():
        pytest.skip("the compiled module has no CUDA kernels: make cuda", allow_module_level=True)


def truth(
    logits: Tensor, labels: Tensor, temperature: float = 1.0, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Log-prob (with a graph if logits have one) and entropy, [...] float64."""
    z = logits.double()
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    logprob = (z / temperature).log_softmax(-1)
    p_log_p = torch.where(logprob.isneginf(), 0.0, logprob.exp() * logprob)
    return logprob.gather(-1, labels[..., None])[..., 0], -p_log_p.sum(-1).detach()


def forward_error(found: Tensor, true: Tensor) -> float:
    """Largest |found - true| / (1 + |true|)."""
    return float(((found.double() - true).abs() / (1 + true.abs())).detach().max()) if found.numel() else 0.0


def forward_bound(logits: Tensor, temperature: float, softcap: float | None) -> float:
    """5e-7; a cap's tanh is itself rounded, by a few units in the last place of the largest capped logit."""
    if softcap is None:
        return 5e-7
    return 5e-7 + 4 * 2.0**-23 * min(softcap, float(logits.double().nan_to_num(0).abs().max())) / temperature


def relative(found: Tensor, true: Tensor) -> float:
    """||found - true|| / ||true||."""
    return float((found.double() - true).norm() / true.norm().clamp(min=1e-30))


@contextmanager
def no_wait() -> Iterator[None]:
    """Any synchronisation that torch knows of raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
