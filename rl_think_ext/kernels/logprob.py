"""The public functions of the kernels: arguments are checked, a backend is chosen, and it is called."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rl_think_ext.kernels import checks, direct, linear_ops, native, ops, torch_backend


class Partials(NamedTuple):
    """What one shard of the vocabulary knows of its rows, each [...] float32, z being the scaled logits of the shard.

    `max` is the largest z * temperature, `sum` the sum of exp(z - max / temperature), `label` z at the label, 0.0
    where the label is in another shard.
    """

    max: Tensor
    sum: Tensor
    label: Tensor


def available_backends() -> tuple[str, ...]:
    """The backends that work here, best first.

    >>> "torch" in available_backends()
    True
    """
    return native.backends()


def masked_logprob(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    rows: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    backend: str = "auto",
    inplace_backward: bool = False,
    backward_out: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """log softmax(z)[label] with z = softcap * tanh(logits / softcap) / temperature, in nats.

    Args:
        logits: [..., V], fp32, bf16 or fp16 (float64 for oracles), any device. Rows may be strided, as in
            `logits[:, :-1]`.
        labels: [...], an integer dtype; read only where `mask` is True.
        mask: [...], bool; None takes every row. Masked rows are never read.
        rows: [R] int64, instead of a mask: the wanted rows of the flattened leading dimensions, ascending. On a GPU
            nothing is then looked at on the host: a label out of range gives NaN there.
        temperature: Divides the (capped) logits; > 0.
        softcap: The cap of the logits, applied before the temperature; None for none.
        entropy: Return a pair (log-prob, entropy of softmax(z)); the entropy is detached.
        backend: "auto", or one of `available_backends()`.
        inplace_backward: Write the gradient over `logits`, which nobody may need any more: the memory of a second
            [..., V] and most of the time of a sparse backward are saved. The torch backend never does.
        backward_out: [..., V] like `logits`: memory for one gradient at a time.

    Returns:
        [...] float32, 0.0 where masked (float64 for float64 logits). Without a soft cap a row that holds NaN or +inf
        gives NaN, and one of -inf alone gives -inf, where torch's log_softmax gives NaN.

    Raises:
        ValueError: a shape, dtype, device, label or backend that does not fit; the text names argument and row.
        NotImplementedError: under functorch's transforms, with a DTensor, or for a second derivative.

    >>> import torch
    >>> masked_logprob(torch.zeros(2, 4), torch.tensor([1, -100]), torch.tensor([True, False]))
    tensor([-1.3863,  0.0000])
    """
    if backend == "auto" and rows is backward_out is None and direct.suits(logits, labels, mask, temperature, softcap):
        return direct.masked_logprob(logits, labels, mask, temperature, softcap, entropy)
    checks.check_plain(logits, "logits")
    which = native.choose(backend, logits, "logits")
    checks.check_numbers(logits, temperature, softcap, "logits")
    labels, mask, rows = checks.check_rows(logits, labels, mask, rows, "logits")
    checks.check_memory(backward_out, inplace_backward, logits)
    if which == "torch":
        mask = checks.check_values(labels, mask, rows, logits.shape[-1])
        return torch_backend.masked_logprob(logits, labels, mask, temperature, softcap, entropy, backward_out)
    found = ops.logprob(
        logits, labels, mask, rows, temperature, softcap or 0.0, entropy, inplace_backward, backward_out
    )
    return (found[0], found[1].detach()) if entropy else found[0]


def linear_masked_logprob(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """`masked_logprob` of hidden @ weight.T + bias, without the logits: not of masked rows, and never all at once.

    Args:
        hidden: [..., D].
        weight: [V, D], of the same dtype and device.
        bias: [V] or None.

    Other arguments, returns and errors are those of `masked_logprob`. Products are summed in float32, whatever the
    dtype: a bf16 product would be off by 1e-2. Under autocast all three are cast as `torch.nn.functional.linear` does.
    The gradients are summed in float32 too; docs/kernels.md says where that memory lies.

    >>> import torch
    >>> linear_masked_logprob(torch.ones(1, 2), torch.zeros(4, 2), torch.tensor([3]))
    tensor([-1.3863])
    """
    checks.check_plain(hidden, "hidden")
    checks.check_plain(weight, "weight")
    if bias is not None:
        checks.check_plain(bias, "bias")
    hidden, weight, bias = checks.autocast(hidden, weight, bias)
    which = native.choose(backend, hidden, "hidden")
    checks.check_numbers(hidden, temperature, softcap, "hidden")
    checks.check_head(hidden, weight, bias)
    labels, mask, rows = checks.check_rows(hidden, labels, mask, rows, "hidden")
    if which == "torch":
        mask = checks.check_values(labels, mask, rows, weight.shape[0])
        return torch_backend.linear_masked_logprob(hidden, weight, labels, mask, bias, temperature, softcap, entropy)
    keep = hidden.is_cuda and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    found = linear_ops.linear_logprob(
        hidden, weight, bias, labels, mask, rows, temperature, softcap or 0.0, entropy, keep
    )
    return (found[0], found[1].detach()) if entropy else found[0]


def logprob_partials(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    first: int = 0,
    rows: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    backend: str = "auto",
) -> Partials:
    """What a rank that holds columns first … first + V - 1 of the logits contributes to a vocabulary-parallel log-prob.

    With one all-reduce of the maxima and one of the sums:
    highest = max(max), total = sum(sum * exp((max - highest) / temperature)),
    logprob = sum(label) - highest / temperature - log(total).

    Args:
        logits: [..., V], this rank's columns; the other arguments are those of `masked_logprob`.
        labels: [...], numbers of the whole vocabulary.
        first: The first column that is here.

    Returns:
        Partials, detached; masked rows hold 0.0.

    >>> import torch
    >>> logprob_partials(torch.zeros(1, 4), torch.tensor([9]), first=8)
    Partials(max=tensor([0.]), sum=tensor([4.]), label=tensor([0.]))
    """
    checks.check_plain(logits, "logits")
    which = native.choose(backend, logits, "logits")
    checks.check_numbers(logits, temperature, softcap, "logits")
    labels, mask, rows = checks.check_rows(logits, labels, mask, rows, "logits")
    if which == "torch":
        mask = checks.check_values(labels, mask, rows, None)
        return Partials(*torch_backend.partials(logits.detach(), labels, mask, temperature, softcap, first))
    with torch.no_grad():
        return Partials(*ops.logprob_partials(logits, labels, mask, rows, temperature, softcap or 0.0, first))
