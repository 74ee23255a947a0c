"""Log-probability of labels under logits, for the rows that are asked for; `masked_logprob` is the door."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def available_backends() -> tuple[str, ...]:
    """The backends that work here, best first.

    >>> "torch" in available_backends()
    True
    """
    return ("torch",)


def masked_logprob(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    backend: str = "auto",
    inplace_backward: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """log softmax(z)[label] with z = softcap * tanh(logits / softcap) / temperature, in nats.

    Args:
        logits: [..., V], fp32, bf16 or fp16 (float64 for oracles), any device.
        labels: [...], an integer dtype; read only where `mask` is True.
        mask: [...], bool; None takes every row. Masked rows are never read.
        temperature: Divides the (capped) logits; > 0.
        softcap: The cap of the logits, applied before the temperature; None for none.
        entropy: Return a pair (log-prob, entropy of softmax(z)); the entropy is detached.
        backend: "auto", or one of `available_backends()`.
        inplace_backward: Allow a backend to write the gradient over `logits`; the torch backend never does.

    Returns:
        [...] float32, 0.0 where masked (float64 for float64 logits).

    Raises:
        ValueError: a shape, dtype, device, label or backend that does not fit; the text names argument and row.

    >>> import torch
    >>> masked_logprob(torch.zeros(2, 4), torch.tensor([1, -100]), torch.tensor([True, False]))
    tensor([-1.3863,  0.0000])
    """
    from rl_think_ext.kernels import checks, torch_backend

    checks.check_backend(backend, available_backends())
    labels, mask = checks.check_rows(logits.shape[:-1], logits.shape[-1], labels, mask, logits.device, "logits")
    checks.check_numbers(logits.dtype, temperature, softcap, "logits")
    return torch_backend.masked_logprob(logits, labels, mask, temperature, softcap, entropy)


def linear_masked_logprob(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """`masked_logprob` of hidden @ weight.T + bias, without the logits of masked rows.

    Args:
        hidden: [..., D].
        weight: [V, D], of the same dtype and device.
        bias: [V] or None.

    Other arguments, returns and errors are those of `masked_logprob`. Rows are multiplied in float32.
    """
    from rl_think_ext.kernels import checks, torch_backend

    checks.check_backend(backend, available_backends())
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1] or weight.dtype != hidden.dtype:
        raise ValueError(
            f"weight is [V, {hidden.shape[-1]}] {hidden.dtype} to fit hidden, got {list(weight.shape)} {weight.dtype}"
        )
    checks.check_bias(bias, weight)
    labels, mask = checks.check_rows(hidden.shape[:-1], weight.shape[0], labels, mask, hidden.device, "hidden")
    checks.check_numbers(hidden.dtype, temperature, softcap, "hidden")
    return torch_backend.linear_masked_logprob(hidden, weight, labels, mask, bias, temperature, softcap, entropy)
