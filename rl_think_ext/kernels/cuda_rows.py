"""What torch.ops.rl_think_ext.logprob and its relatives do with CUDA tensors: memory, a launch, no wait.

Without `rows` the label range is looked at on the host, which waits for the GPU once a forward; with `rows`, and while
a CUDA graph is captured, nothing waits, and a label out of range makes its row NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rl_think_ext.kernels import checks, native
from rl_think_ext.kernels.layout import CODES, chosen, grid
from rl_think_ext.kernels.ops import new_results

# A row is cut in parts of at least so many bytes, so that a part takes longer than the start of a block.
PART_BYTES = 2**15
# Blocks to have for each multiprocessor, where there are rows and bytes enough: few rows then end together.
BLOCKS_EACH = 8
# The share of a mask's rows that is counted on to be True: to look would be to wait for the GPU.
MASK_SHARE = 1 / 16


def forward(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    rows: Tensor | None,
    temperature: float,
    softcap: float,
    entropy: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-prob, entropy (empty where it is not asked for), max and log-sum of each row, [...] float32.

    Raises:
        ValueError: a label out of range, where that is looked at.
        RuntimeError: CUDA's own text.
    """
    check_labels(labels, mask, rows, logits.shape[-1])
    results = new_results(labels, rows is None, entropy)
    addresses = tuple(result.data_ptr() if result.numel() else 0 for result in results)
    _rows_call("cuda_forward", logits, labels, mask, rows, None, (temperature, softcap), addresses)
    return results


def partials(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    rows: Tensor | None,
    temperature: float,
    softcap: float,
    first: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Max, sum and z at the label, [...] float32, of the columns first … first + V - 1 of a sharded vocabulary.

    Raises:
        RuntimeError: CUDA's own text.
    """
    highest, _, total, label = new_results(labels, rows is None, False)
    addresses = (highest.data_ptr(), total.data_ptr(), label.data_ptr())
    _rows_call("cuda_partials", logits, labels, mask, rows, first, (temperature, softcap), addresses)
    return highest, total, label


def backward(
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
    first: int = 0,
) -> None:
    """Write the gradient with respect to the logits into `out` (it may be `logits`), zeros where a row is not wanted.

    Raises:
        ValueError: `out` has gaps between the elements of a row.
        RuntimeError: CUDA's own text.
    """
    source, target = grid(logits), grid(out)
    if target.tensor.data_ptr() != out.data_ptr():
        raise ValueError("a gradient is written over the logits, or into backward_out, only where rows are contiguous")
    if logits.numel() == 0:
        return
    with torch.cuda.device(logits.device):
        grad = grad.resolve_neg().float().contiguous()
        if rows is not None:
            # Rows that are not listed need zeros, which only a kernel that visits all of them can write.
            mask, rows = mask_of(rows, labels.numel()), None
        succeed(
            native.module().cuda_backward(
                CODES[logits.dtype],
                *source.address,
                *target.address,
                logits.shape[-1],
                labels.data_ptr(),
                first,
                *chosen(labels, mask, rows),
                temperature,
                softcap,
                grad.data_ptr(),
                highest.data_ptr(),
                log_sum.data_ptr(),
                *place(logits),
            )
        )


def succeed(error: str | None) -> None:
    """Raise what CUDA says.

    Raises:
        RuntimeError: with CUDA's text.
    """
    if error is not None:
        raise RuntimeError(f"rl_think_ext: a CUDA kernel could not be started: {error}")


def place(x: Tensor) -> tuple[int, int]:
    """Device and current stream, as the compiled calls take them."""
    return x.get_device(), torch.cuda.current_stream(x.device).cuda_stream


def check_labels(labels: Tensor, mask: Tensor | None, rows: Tensor | None, vocab: int) -> None:
    """Look at the labels of wanted rows, unless `rows` or a capture asks not to wait.

    Raises:
        ValueError: naming the first row whose label is out of range.
    """
    if rows is None and not torch.cuda.is_current_stream_capturing():
        checks.check_values(labels, mask, None, vocab)


def mask_of(rows: Tensor, num_rows: int) -> Tensor:
    """Listed rows as a mask [num_rows], without waiting; a number that is no row falls on either side of it."""
    wide = torch.zeros(num_rows + 2, dtype=torch.bool, device=rows.device)
    return wide.index_fill_(0, rows.clamp(-1, num_rows) + 1, True)[1:-1]


def splits(wanted: int, row_bytes: int, multiprocessors: int) -> int:
    """Parts to cut each of `wanted` rows in, so that few rows keep a whole GPU busy.

    >>> splits(8192, 303872, 132), splits(410, 303872, 132), splits(1, 303872, 132), splits(1, 64, 132)
    (1, 3, 10, 1)
    """
    fitting = -(-BLOCKS_EACH * multiprocessors // max(1, wanted))
    return max(1, min(fitting, -(-row_bytes // PART_BYTES)))


def _rows_call(
    name: str,
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    rows: Tensor | None,
    first: int | None,
    numbers: tuple[float, float],
    results: tuple[int, ...],
) -> None:
    """The part that forward and partials share: strides, the cut of the rows, memory for their parts."""
    wanted = labels.numel() if rows is None else rows.numel()
    if wanted == 0:
        return
    x, vocab = grid(logits), logits.shape[-1]
    with torch.cuda.device(logits.device):
        busy = wanted if mask is None else max(1, int(wanted * MASK_SHARE))
        cores = torch.cuda.get_device_properties(logits.device).multi_processor_count
        parts = splits(busy, vocab * logits.element_size(), cores)
        scratch = torch.empty(wanted * parts * 3 if parts > 1 else 0, dtype=torch.float32, device=logits.device)
        arguments: tuple[Any, ...] = (CODES[logits.dtype], *x.address, vocab, labels.data_ptr())
        succeed(
            getattr(native.module(), name)(
                *arguments,
                *(() if first is None else (first,)),
                *chosen(labels, mask, rows),
                *numbers,
                *results,
                parts,
                scratch.data_ptr(),
                *place(logits),
            )
        )
