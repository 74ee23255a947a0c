"""torch.ops.rl_think_ext.linear_logprob: from hidden states and the head's weight, logits never whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rl_think_ext.kernels import native
from rl_think_ext.kernels.layout import CODES, address, chosen, grid
from rl_think_ext.kernels.ops import LIBRARY, complain, new_results, no_second_derivative, register

_HEAD = "Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, Tensor? mask, Tensor? rows"
LIBRARY.define(
    f"linear_logprob({_HEAD}, float temperature, float softcap, bool entropy, bool keep) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    f"linear_logprob_backward(Tensor grad, {_HEAD}, Tensor max, Tensor log_sum, Tensor kept, float temperature, "
    "float softcap, bool need_hidden, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)"
)


def _head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, mask: Tensor | None, rows: Tensor | None
) -> tuple[Any, ...]:
    """The arguments of a compiled call, and the tensors that have to outlive it."""
    x = grid(hidden)
    weight = weight.resolve_neg()
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    bias = None if bias is None else bias.resolve_neg().contiguous()
    arguments = (
        CODES[hidden.dtype],
        *x.address,
        hidden.shape[-1],
        address(weight),
        weight.stride(0),
        weight.shape[0],
        address(bias),
        labels.data_ptr(),
        *chosen(labels, mask, rows),
    )
    return arguments, (x, weight, bias)


def _forward_cpu(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    mask: Tensor | None,
    rows: Tensor | None,
    temperature: float,
    softcap: float,
    entropy: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    results = new_results(labels, mask is None and rows is None, entropy)
    arguments, _alive = _head(hidden, weight, bias, labels, mask, rows)
    bad = native.module().linear_forward(
        *arguments,
        1.0 / temperature,
        softcap,
        *(result.data_ptr() if result.numel() else 0 for result in results),
        torch.get_num_threads(),
    )
    if bad != -1:
        complain(bad, labels, rows, weight.shape[0])
    return *results, results[0].new_empty(0)


def _backward_cpu(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    mask: Tensor | None,
    rows: Tensor | None,
    highest: Tensor,
    log_sum: Tensor,
    kept: Tensor,
    temperature: float,
    softcap: float,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad = grad.resolve_neg().float().contiguous()
    outs = (
        torch.zeros(hidden.shape if need_hidden else (0,), dtype=hidden.dtype),
        torch.zeros(weight.shape if need_weight else (0,), dtype=hidden.dtype),
        torch.zeros(weight.shape[:1] if need_bias else (0,), dtype=hidden.dtype),
    )
    arguments, _alive = _head(hidden, weight, bias, labels, mask, rows)
    native.module().linear_backward(
        *arguments,
        1.0 / temperature,
        softcap,
        grad.data_ptr(),
        highest.data_ptr(),
        log_sum.data_ptr(),
        *(out.data_ptr() if out.numel() else 0 for out in outs),
        torch.get_num_threads(),
    )
    return outs


def _forward_cuda(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from rl_think_ext.kernels import cuda_linear

    return cuda_linear.forward(*args)


def _backward_cuda(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from rl_think_ext.kernels import cuda_linear

    return cuda_linear.backward(*args)


def _forward_fake(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *rest: Any) -> Any:
    results = new_results(labels, True, rest[4])
    return *results, results[0].new_empty(0)


def _backward_fake(grad: Tensor, hidden: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    need_hidden, need_weight, need_bias = rest[-3:]
    return (
        hidden.new_empty(hidden.shape if need_hidden else (0,)),
        hidden.new_empty(weight.shape if need_weight else (0,)),
        hidden.new_empty(weight.shape[:1] if need_bias else (0,)),
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.temperature, ctx.softcap, _, _ = inputs
    ctx.save_for_backward(*tensors, output[2], output[3], output[4])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *others: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    saved = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    found = torch.ops.rl_think_ext.linear_logprob_backward.default(grad, *saved, ctx.temperature, ctx.softcap, *needs)
    return *(one if need else None for one, need in zip(found, needs, strict=True)), *(None,) * 7


register("linear_logprob", _forward_cpu, _forward_cuda, _forward_fake)
register("linear_logprob_backward", _backward_cpu, _backward_cuda, _backward_fake)
torch.library.register_autograd("rl_think_ext::linear_logprob", _backward, setup_context=_remember, lib=LIBRARY)
torch.library.register_autograd("rl_think_ext::linear_logprob_backward", no_second_derivative, lib=LIBRARY)

linear_logprob = torch.ops.rl_think_ext.linear_logprob.default
