"""What an attack on the kernels found, once each."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rl_think_ext.kernels import available_backends, linear_masked_logprob, masked_logprob

BACKENDS = available_backends()


def oracle(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.double().log_softmax(-1).gather(-1, labels[..., None])[..., 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_gradients_for_one_memory_raise(backend: str) -> None:
    x, out = torch.randn(3, 50, requires_grad=True), torch.empty(3, 50)
    z, labels = x * 1, torch.tensor([1, 2, 3])
    first = masked_logprob(z, labels, backward_out=out, backend=backend)
    second = masked_logprob(z, labels + 1, backward_out=out, backend=backend)
    with pytest.raises(RuntimeError, match=r"^backward_out was written to since this forward"):
        (first.sum() + second.sum()).backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_leaf_keeps_its_gradient_when_the_memory_is_used_again(backend: str) -> None:
    labels, out = torch.tensor([1, 2, 3]), torch.empty(3, 50)
    x, expected = torch.randn(3, 50, requires_grad=True), torch.zeros(3, 50)
    for weight in (1.0, -3.0):
        (masked_logprob(x, labels, backward_out=out, backend=backend).sum() * weight).backward()
        expected += weight * torch.autograd.grad(masked_logprob(x, labels).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("depth", [896, 4096])
def test_deep_products_keep_the_promise(backend: str, dtype: torch.dtype, depth: int) -> None:
    generator = torch.Generator().manual_seed(depth)
    hidden = torch.randn(8, depth, generator=generator).to(dtype)
    weight = (torch.randn(2000, depth, generator=generator) * 6 / math.sqrt(depth)).to(dtype)
    labels = torch.arange(8) * 200
    expected = oracle(hidden.double() @ weight.double().T, labels)
    got = linear_masked_logprob(hidden, weight, labels, backend=backend)
    assert isinstance(got, Tensor)
    assert float(((got - expected).abs() / (1 + expected.abs())).max()) <= 5e-7


def test_sum_over_many_rows_keeps_the_promise() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.rand(8192, 8, generator=generator) + 0.5
    weight = torch.randn(30, 8, generator=generator)
    labels = torch.randint(30, (8192,), generator=generator)
    grads = []
    for h, w in ((hidden, weight), (hidden.double(), weight.double())):
        leaf = w.clone().requires_grad_()
        linear_masked_logprob(h, leaf, labels, backend="auto").sum().backward()  # type: ignore[union-attr]
        assert leaf.grad is not None
        grads.append(leaf.grad.double())
    assert float((grads[0] - grads[1]).norm() / grads[1].norm()) <= 1e-6


@pytest.mark.parametrize("name", ["temperature", "softcap"])
@pytest.mark.parametrize("value", [1e-46, 1e-38, 1e39, math.inf])
def test_scale_that_float32_cannot_hold_is_refused(name: str, value: float) -> None:
    for logits in (torch.zeros(1, 4), torch.zeros(1, 4, requires_grad=True)):
        with pytest.raises(ValueError, match=rf"^{name} is above 0"):
            masked_logprob(logits, torch.tensor([1]), **{name: value})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 3, 0), (0, 3, 2), (2, 0, 3, 1)], ids=str)
def test_nothing_in_many_dimensions(backend: str, shape: tuple[int, ...]) -> None:
    got = masked_logprob(torch.zeros(*shape, 5), torch.zeros(shape, dtype=torch.long), backend=backend)
    assert isinstance(got, Tensor)
    assert got.shape == shape


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "torch"])
def test_slope_of_the_cap_does_not_cancel(backend: str) -> None:
    cap, logits = 30.0, torch.tensor([[200.0, 210.0, 220.0]], requires_grad=True)
    masked_logprob(logits, torch.tensor([0]), softcap=cap, backend=backend).sum().backward()  # type: ignore[union-attr]
    z = logits.detach().double()
    p = (cap * torch.tanh(z / cap)).softmax(-1)
    slope = 1 / torch.cosh(z / cap) ** 2
    expected = (torch.tensor([[1.0, 0.0, 0.0]]) - p) * slope
    assert logits.grad is not None
    # The slopes are 1e-5 and less, and 1 - tanh^2 in float32 would be off by a hundredth of them.
    torch.testing.assert_close(logits.grad.double(), expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sparse_logits_are_refused_by_name(backend: str) -> None:
    with pytest.raises(ValueError, match=r"^logits is a dense tensor"):
        masked_logprob(torch.eye(3).to_sparse(), torch.tensor([0, 1, 2]), backend=backend)
