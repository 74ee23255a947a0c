"""What torch.ops.rl_think_ext.linear_logprob does with CUDA tensors: cuBLAS through torch and the fold, by chunks.

Memory, beside the inputs and what is returned, in bytes; `chunk` is RL_THINK_CHUNK_MIB (128) MiB, R the wanted rows:

    forward   compact hidden states, one chunk of float32 logits (at most `chunk`)
    backward  the same, the chunk's gradient in the weight's dtype (half of it, or in place in float32), one slice of
              the weight's gradient in float32 (at most `chunk`, [slice, D]: never [V, D]), [R, D] float32 for hidden's
    kept      compact float32 logits [R, V] from forward to backward, if they fit RL_THINK_KEEP_MIB (1024) MiB;
              otherwise they are computed again. In float32: bf16 would put 4e-3 * |z| into every probability.

Rounding: logits are products of the inputs summed and stored in float32. The gradient of the logits is computed in
float32 and rounded once to the weight's dtype, so that its two products run on the tensor cores, again summed in
float32; over slices and chunks of rows the sums stay in float32, and what is returned is rounded once more. In float16,
where a probability times a gradient soon leaves the range, the gradient is first scaled by a power of two. In float32
everything is float32; whether the products use TF32 is up to torch.backends.cuda.matmul, as in all of torch.

With `rows` given nothing waits for the GPU; a mask is turned into rows, which waits for their number.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rl_think_ext.kernels.cuda_chunks import (
    Compact,
    Cuda,
    Numbers,
    Piece,
    Primitives,
    Running,
    State,
    gather,
    kept_shape,
    plan,
    spans,
    view,
)
from rl_think_ext.kernels.cuda_rows import check_labels
from rl_think_ext.kernels.ops import new_results


def forward(
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
    primitives: Primitives | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-prob, entropy (empty where it is not asked for), max and log-sum, [...] float32, and the kept logits or [0].

    Raises:
        ValueError: a label out of range, where `rows` is not given.
        RuntimeError: CUDA's own text.
    """
    with torch.cuda.device_of(hidden), torch.autocast(hidden.device.type, enabled=False):
        if primitives is None:
            check_labels(labels, mask, rows, weight.shape[0])
        compact = gather(hidden, labels, mask, rows)
        num_rows, vocab = compact.labels.shape[0], weight.shape[0]
        results = new_results(labels, compact.rows is None, entropy)
        kept = results[0].new_empty(kept_shape(num_rows, vocab, keep))
        run, numbers, wide_bias = primitives or Cuda(), Numbers(temperature, softcap), _float(bias)
        running = Running.start(compact.labels, entropy)
        chunk_rows, columns = plan(num_rows, vocab, 0)
        buffer = results[0].new_empty(chunk_rows * columns if kept.numel() == 0 else 0)
        for begin, end in spans(num_rows, chunk_rows):
            for first, last in spans(vocab, columns):
                piece = Piece(view(kept, buffer, begin, end, first, last), begin, first)
                run.multiply(compact.hidden[begin:end], weight[first:last].t(), piece.logits)
                run.fold(piece, compact, wide_bias, numbers, running, results if last == vocab else None)
    return *results, kept


def backward(
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
    primitives: Primitives | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias in their dtypes; [0] where not needed.

    The outer loop is over slices of the vocabulary: a slice of the weight's gradient is complete in one buffer before
    the next begins. The inner one is over chunks of rows.

    Raises:
        RuntimeError: CUDA's own text.
    """
    with torch.cuda.device_of(hidden), torch.autocast(hidden.device.type, enabled=False):
        compact = gather(hidden, labels, mask, rows)
        state, unscale = _state(grad, highest, log_sum, compact.rows, weight.dtype, temperature)
        work = _Backward(
            primitives or Cuda(), compact, weight, _float(bias), Numbers(temperature, softcap), state, kept
        )
        grad_hidden = work.zeros(*compact.hidden.shape) if need_hidden else None
        grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if need_weight else None
        grad_bias = weight.new_empty(weight.shape[0]) if need_bias else None
        if need_hidden or need_weight or need_bias:
            work.run(grad_hidden, grad_weight, grad_bias, unscale)
        nothing = weight.new_empty(0)
        return (
            nothing if grad_hidden is None else _scatter(grad_hidden, hidden, compact.rows, unscale),
            weight.new_empty(0) if grad_weight is None else grad_weight,
            weight.new_empty(0) if grad_bias is None else grad_bias,
        )


class _Backward(NamedTuple):
    primitives: Primitives
    compact: Compact
    weight: Tensor
    bias: Tensor | None
    numbers: Numbers
    state: State
    kept: Tensor

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.weight.device)

    def run(
        self, grad_hidden: Tensor | None, grad_weight: Tensor | None, grad_bias: Tensor | None, unscale: Tensor | None
    ) -> None:
        """All slices; hidden's gradient is added to, weight's and bias's are written."""
        vocab, depth = self.weight.shape
        num_rows = self.compact.labels.shape[0]
        chunk_rows, columns = plan(num_rows, vocab, depth if grad_weight is not None else 0)
        wide = self.kept.numel() == 0 or self.weight.dtype == torch.float32
        memory = self.kept.new_empty(chunk_rows * columns if wide else 0)
        narrow = self.weight.new_empty(chunk_rows * columns if self.weight.dtype != torch.float32 else 0)
        # Zeros for the case without any row, where no product writes it.
        slice_weight = self.zeros(columns if grad_weight is not None else 0, depth)
        slice_bias = self.zeros(columns if grad_bias is not None else 0)
        for first, last in spans(vocab, columns):
            weight_part, bias_part = slice_weight[: last - first], slice_bias[: last - first]
            bias_part.zero_()
            for begin, end in spans(num_rows, chunk_rows):
                dz = self.chunk(memory, narrow, begin, end, first, last)
                if grad_hidden is not None:
                    self.primitives.accumulate(dz, self.weight[first:last], grad_hidden[begin:end])
                if grad_weight is not None:
                    product = self.primitives.multiply if begin == 0 else self.primitives.accumulate
                    product(dz.t(), self.compact.hidden[begin:end], weight_part)
                if grad_bias is not None:
                    bias_part += dz.sum(0, dtype=torch.float32)
            for part, out in ((weight_part, grad_weight), (bias_part, grad_bias)):
                if out is not None:
                    out[first:last] = part if unscale is None else part * unscale

    def chunk(self, memory: Tensor, narrow: Tensor, begin: int, end: int, first: int, last: int) -> Tensor:
        """Gradient of the logits of one chunk, [rows, columns] in the weight's dtype."""
        piece = Piece(view(self.kept, memory, begin, end, first, last), begin, first)
        if self.kept.numel() == 0:
            self.primitives.multiply(self.compact.hidden[begin:end], self.weight[first:last].t(), piece.logits)
        # Kept logits stay as they are: another backward through the same graph reads them again.
        target = memory if self.weight.dtype == torch.float32 else narrow
        out = target[: (end - begin) * (last - first)].view(end - begin, last - first)
        self.primitives.gradient(piece, self.compact, self.bias, self.numbers, self.state, out)
        return out


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.resolve_neg().float().contiguous()


def _state(
    grad: Tensor, highest: Tensor, log_sum: Tensor, rows: Tensor | None, dtype: torch.dtype, temperature: float
) -> tuple[State, Tensor | None]:
    """Compact gradient, max and log-sum [R]; for float16 the gradient scaled, and what undoes that, both on the GPU."""
    flat = [x.resolve_neg().float().reshape(-1).contiguous() for x in (grad, highest, log_sum)]
    grad, highest, log_sum = flat if rows is None else [x.index_select(0, rows) for x in flat]
    if dtype != torch.float16 or grad.numel() == 0:
        return (grad, highest, log_sum), None
    # The largest |g / T| goes to about 2^14: the gradient of a logit is never larger, and 65504 is not reached.
    top = grad.abs().amax() / temperature
    exponent = torch.where((top > 0) & top.isfinite(), (14 - top.log2().ceil()).clamp(-100, 100), 0.0)
    return (grad * exponent.exp2(), highest, log_sum), (-exponent).exp2()


def _scatter(grad_hidden: Tensor, hidden: Tensor, rows: Tensor | None, unscale: Tensor | None) -> Tensor:
    values = (grad_hidden if unscale is None else grad_hidden * unscale).to(hidden.dtype)
    if rows is None:
        return values.view(hidden.shape)
    out = torch.zeros(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    out.view(-1, hidden.shape[-1]).index_copy_(0, rows, values)
    return out
