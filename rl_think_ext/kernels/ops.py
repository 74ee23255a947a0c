"""torch.ops.rl_think_ext.logprob and its backward: what autograd, torch.compile and FakeTensor see of the kernels.

Arguments arrive checked, but for what only their values tell: labels out of range are found where they are read, so
that a compiled graph checks them too. A softcap of 0 is none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rl_think_ext.kernels import native
from rl_think_ext.kernels.layout import CODES, chosen, grid

LIBRARY = torch.library.Library("rl_think_ext", "FRAGMENT")
_ROWS = "Tensor labels, Tensor? mask, Tensor? rows"
_STATE = "Tensor max, Tensor log_sum, float temperature, float softcap"
LIBRARY.define(
    f"logprob(Tensor logits, {_ROWS}, float temperature, float softcap, bool entropy, bool inplace, Tensor? out) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
LIBRARY.define(f"logprob_backward(Tensor grad, Tensor logits, {_ROWS}, {_STATE}) -> Tensor")
LIBRARY.define(f"logprob_backward_into(Tensor grad, Tensor logits, {_ROWS}, {_STATE}, Tensor(a!) out) -> ()")
LIBRARY.define(f"logprob_backward_inplace(Tensor grad, Tensor(a!) logits, {_ROWS}, {_STATE}) -> ()")
LIBRARY.define(
    f"logprob_partials(Tensor logits, {_ROWS}, float temperature, float softcap, int first) -> (Tensor, Tensor, Tensor)"
)


def complain(bad: int, labels: Tensor, rows: Tensor | None, vocab: int) -> None:
    """Raise for what the compiled module found.

    Raises:
        ValueError: naming the argument and the row: a label out of range, or a row that is none.
    """
    if bad >= 0:
        raise ValueError(f"labels: row {bad} holds {int(labels.reshape(-1)[bad])}, outside 0 … {vocab - 1}")
    assert rows is not None
    entry = -2 - bad
    raise ValueError(
        f"rows: entry {entry} is {int(rows[entry])}; they are numbers of the {labels.numel()} rows, each above the last"
    )


def new_results(labels: Tensor, everywhere: bool, entropy: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory for log-prob, entropy, max, log_sum: 0 where no row will be written."""
    make = torch.empty if everywhere else torch.zeros
    options: dict[str, Any] = {"dtype": torch.float32, "device": labels.device}
    one, two, three = (make(labels.shape, **options) for _ in range(3))
    return one, make(labels.shape if entropy else (0,), **options), two, three


def _forward_cpu(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    rows: Tensor | None,
    temperature: float,
    softcap: float,
    entropy: bool,
    inplace: bool,
    out: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, vocab = grid(logits), logits.shape[-1]
    results = new_results(labels, mask is None and rows is None, entropy)
    bad = native.module().forward(
        CODES[logits.dtype],
        *x.address,
        vocab,
        labels.data_ptr(),
        *chosen(labels, mask, rows),
        1.0 / temperature,
        softcap,
        *(result.data_ptr() if result.numel() else 0 for result in results),
        torch.get_num_threads(),
    )
    if bad != -1:
        complain(bad, labels, rows, vocab)
    return results


def _into_cpu(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    rows: Tensor | None,
    highest: Tensor,
    log_sum: Tensor,
    temperature: float,
    softcap: float,
    out: Tensor,
    clear: bool = True,
    first: int = 0,
) -> None:
    x, target = grid(logits), grid(out)
    grad = grad.resolve_neg().float().contiguous()
    native.module().backward(
        CODES[logits.dtype],
        *x.address,
        *target.address,
        logits.shape[-1],
        labels.data_ptr(),
        first,
        *chosen(labels, mask, rows),
        1.0 / temperature,
        softcap,
        grad.data_ptr(),
        highest.data_ptr(),
        log_sum.data_ptr(),
        clear and (mask is not None or rows is not None),
        torch.get_num_threads(),
    )
    if target.tensor.data_ptr() != out.data_ptr():
        out.copy_(target.tensor.view(out.shape))  # its rows could only be addressed as a copy


def _backward_cpu(grad: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    # Fresh zeros are not paid for before they are touched, so the masked rows cost nothing.
    labels, mask, rows, highest, log_sum, temperature, softcap = rest
    everywhere = mask is None and rows is None
    out = (torch.empty if everywhere else torch.zeros)(logits.shape, dtype=logits.dtype)
    _into_cpu(grad, logits, labels, mask, rows, highest, log_sum, temperature, softcap, out, clear=False)
    return out


def _inplace_cpu(grad: Tensor, logits: Tensor, *rest: Any) -> None:
    labels, mask, rows, highest, log_sum, temperature, softcap = rest
    _into_cpu(grad, logits, labels, mask, rows, highest, log_sum, temperature, softcap, logits)


def _partials_cpu(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    rows: Tensor | None,
    temperature: float,
    softcap: float,
    first: int,
) -> tuple[Tensor, Tensor, Tensor]:
    highest, _, total, label = new_results(labels, mask is None and rows is None, False)
    x = grid(logits)
    bad = native.module().partials(
        CODES[logits.dtype],
        *x.address,
        logits.shape[-1],
        labels.data_ptr(),
        first,
        *chosen(labels, mask, rows),
        1.0 / temperature,
        softcap,
        highest.data_ptr(),
        total.data_ptr(),
        label.data_ptr(),
        torch.get_num_threads(),
    )
    if bad != -1:
        complain(bad, labels, rows, logits.shape[-1])
    return highest, total, label


def _forward_cuda(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from rl_think_ext.kernels import cuda_rows

    return cuda_rows.forward(*args[:7])


def _into_cuda(*args: Any) -> None:
    from rl_think_ext.kernels import cuda_rows

    cuda_rows.backward(*args)


def _backward_cuda(grad: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    _into_cuda(grad, logits, *rest, out)
    return out


def _inplace_cuda(grad: Tensor, logits: Tensor, *rest: Any) -> None:
    _into_cuda(grad, logits, *rest, logits)


def _partials_cuda(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from rl_think_ext.kernels import cuda_rows

    return cuda_rows.partials(*args)


def _forward_fake(logits: Tensor, labels: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return new_results(labels, True, rest[4])


def _partials_fake(logits: Tensor, labels: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    highest, _, total, label = new_results(labels, True, False)
    return highest, total, label


def _backward_fake(grad: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _nothing_fake(*args: Any) -> None:
    return None


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, labels, mask, rows, ctx.temperature, ctx.softcap, _, ctx.inplace, out = inputs
    ctx.save_for_backward(logits, labels, mask, rows, output[2], output[3])
    ctx.memory = None if out is None else GradientMemory(out, logits.is_leaf)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *others: Any) -> tuple[Tensor | None, ...]:
    none = (None,) * 8
    if grad is None:
        return None, *none
    saved, memory = ctx.saved_tensors, ctx.memory
    numbers = (ctx.temperature, ctx.softcap)
    if not ctx.inplace and memory is None:
        return torch.ops.rl_think_ext.logprob_backward.default(grad, *saved, *numbers), *none
    if torch.is_grad_enabled():
        raise NotImplementedError("a gradient that is written over other memory has no graph: leave create_graph off")
    if memory is not None:
        memory.check()
        torch.ops.rl_think_ext.logprob_backward_into.default(grad, *saved, *numbers, memory.out)
        return memory.handed_on(), *none
    logits = saved[0]
    torch.ops.rl_think_ext.logprob_backward_inplace.default(grad, *saved, *numbers)
    if not torch.compiler.is_compiling():
        # Whoever saved these logits, a second backward through this graph too, is told that they are gone.
        torch.autograd.graph.increment_version(logits)
    return logits.detach(), *none


class GradientMemory:
    """`backward_out` between a forward and its backward: nobody else may have written there meanwhile."""

    def __init__(self, out: Tensor, is_leaf: bool) -> None:
        self.out, self._is_leaf, self._version = out, is_leaf, self._now(out)

    @staticmethod
    def _now(out: Tensor) -> int:
        return 0 if torch.compiler.is_compiling() or out.is_inference() else out._version

    def check(self) -> None:
        """Before the gradient is written.

        Raises:
            RuntimeError: another gradient was written there, which somebody may still have to read.
        """
        if self._now(self.out) != self._version:
            raise RuntimeError(
                "backward_out was written to since this forward: it holds one gradient, so give each call its own"
            )

    def handed_on(self) -> Tensor:
        """The gradient that was written; a copy for a leaf, which keeps it: the next one would be written there."""
        if not torch.compiler.is_compiling() and not self.out.is_inference():
            torch.autograd.graph.increment_version(self.out)
        self._version = self._now(self.out)
        return self.out.clone() if self._is_leaf else self.out.detach()


def no_second_derivative(ctx: Any, *grads: Any) -> Any:
    """The backward of a backward.

    Raises:
        NotImplementedError: always; without it torch would go on with a wrong second derivative.
    """
    raise NotImplementedError("masked_logprob has no second derivative: say backend='torch'")


def register(name: str, cpu: Any, cuda: Any, fake: Any) -> None:
    """Implementations of one op of the library."""
    LIBRARY.impl(name, cpu, "CPU")
    LIBRARY.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"rl_think_ext::{name}", fake, lib=LIBRARY)


register("logprob", _forward_cpu, _forward_cuda, _forward_fake)
register("logprob_backward", _backward_cpu, _backward_cuda, _backward_fake)
register("logprob_backward_into", _into_cpu, _into_cuda, _nothing_fake)
register("logprob_backward_inplace", _inplace_cpu, _inplace_cuda, _nothing_fake)
register("logprob_partials", _partials_cpu, _partials_cuda, _partials_fake)
torch.library.register_autograd("rl_think_ext::logprob", _backward, setup_context=_remember, lib=LIBRARY)
torch.library.register_autograd("rl_think_ext::logprob_backward", no_second_derivative, lib=LIBRARY)

logprob = torch.ops.rl_think_ext.logprob.default
logprob_partials = torch.ops.rl_think_ext.logprob_partials.default
