"""What the tests of the kernels share: instruction sets, data and the same numbers in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rl_think_ext.kernels import available_backends, native

NATIVE = native.module()


def _instructions() -> tuple[str, ...]:
    if NATIVE is None:
        return ()
    before = NATIVE.isa()
    here = tuple(name for name in native.INSTRUCTIONS if NATIVE.use_isa(name))
    NATIVE.use_isa(before)
    return here


INSTRUCTIONS = _instructions()
# Every way to compute here: "cpp-avx2" is the backend "cpp" with AVX2 instructions.
WAYS = (*(f"cpp-{name}" for name in INSTRUCTIONS), *(name for name in available_backends() if name != "cpp"))
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@contextmanager
def computed(way: str) -> Iterator[str]:
    """The backend of a way, with its instructions in use."""
    backend, _, instructions = way.partition("-")
    if not instructions:
        yield backend
        return
    before = NATIVE.isa()
    assert NATIVE.use_isa(instructions)
    try:
        yield backend
    finally:
        NATIVE.use_isa(before)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def scaled(logits: Tensor, temperature: float = 1.0, softcap: float | None = None) -> Tensor:
    """z in float64."""
    x = logits.double()
    return (x if softcap is None else softcap * torch.tanh(x / softcap)) / temperature


def exact(
    logits: Tensor, labels: Tensor, mask: Tensor | None = None, temperature: float = 1.0, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy in float64, 0 where masked; part of the graph of `logits`."""
    logprob = scaled(logits, temperature, softcap).log_softmax(-1)
    keep = torch.ones(labels.shape, dtype=torch.bool) if mask is None else mask
    found = logprob.gather(-1, labels.where(keep, 0)[..., None])[..., 0]
    entropy = -torch.where(logprob.isneginf(), 0.0, logprob.exp() * logprob).sum(-1)
    return found.where(keep, 0.0), entropy.where(keep, 0.0)


def kept(shape: tuple[int, ...], density: float, seed: int = 0) -> Tensor | None:
    """A mask that keeps a share of the rows, one at least unless the share is 0; None for all."""
    if density == 1:
        return None
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    if density > 0 and mask.numel() > 0:
        mask.view(-1)[-1] = True
    return mask


def normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(math.prod(shape) + seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def picks(vocab: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(vocab + seed))


def assert_near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """|got - expected| <= tolerance * (1 + |expected|), everywhere."""
    error = (got.detach().double() - expected.detach()).abs() / (1 + expected.detach().abs())
    assert error.numel() == 0 or float(error.max()) <= tolerance, f"{float(error.max()):.2e} above {tolerance:.0e}"


def assert_gradient(
    got: Tensor | None, expected: Tensor, dtype: torch.dtype, tolerance: float = 1e-6, rounding: float = 0.0
) -> None:
    """In norm; a 16-bit gradient may also be off by the rounding of each number."""
    assert got is not None
    error = (got.double() - expected).abs()
    if dtype != torch.float32:
        smallest = 2**-24 if dtype == torch.float16 else 0.0
        error = (error - (expected.abs() * torch.finfo(dtype).eps / 2 * (1 + 1e-5) + smallest / 2)).clamp(min=0)
    bound = tolerance * float(expected.norm()) + rounding + 1e-12
    assert float(error.norm()) <= bound, f"{float(error.norm()):.2e} above {bound:.2e}"


def gradients(call: Callable[..., Any], *leaves: Tensor, weights: Tensor | None = None) -> list[Tensor | None]:
    """Of sum(weights * log-prob), with respect to copies of the leaves."""
    copies = [x.detach().clone().requires_grad_() for x in leaves]
    out = call(*copies)
    logprob = out[0] if isinstance(out, tuple) else out
    total = logprob.sum() if weights is None else (logprob * weights).sum()
    return list(torch.autograd.grad(total, copies, allow_unused=True))
