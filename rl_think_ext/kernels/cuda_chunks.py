"""The chunks of torch.ops.rl_think_ext.linear_logprob: which rows and columns, and what is done to each of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rl_think_ext.kernels import native
from rl_think_ext.kernels.cuda_rows import place, succeed
from rl_think_ext.kernels.layout import CODES, address

MIB = 2**20
CHUNK_BYTES = int(os.environ.get("RL_THINK_CHUNK_MIB", "128")) * MIB
KEEP_BYTES = int(os.environ.get("RL_THINK_KEEP_MIB", "1024")) * MIB
# Rows of a chunk at most: more make a product no faster, and a slice of the weight's gradient wants them together.
CHUNK_ROWS = 8192
# Columns are a multiple of this (but the last), for the tiles of a product and 16-byte rows.
COLUMN_STEP = 256


class Numbers(NamedTuple):
    """z = v / temperature, v = softcap * tanh(x / softcap), v = x where softcap is 0."""

    temperature: float
    softcap: float


class Piece(NamedTuple):
    """Float32 logits [rows, columns] before bias and cap, of rows `begin` … and columns `first` … ."""

    logits: Tensor
    begin: int
    first: int

    @property
    def rows(self) -> slice:
        """Its rows among the compact ones."""
        return slice(self.begin, self.begin + self.logits.shape[0])


class Compact(NamedTuple):
    """The wanted rows only: hidden [R, D], labels [R], their numbers [R] or None where all rows are wanted."""

    hidden: Tensor
    labels: Tensor
    rows: Tensor | None


@dataclass
class Running:
    """State [R] of rows, some columns folded in: max of v, sum of e, sum of e * log2(e) or None, v at the label."""

    max: Tensor
    sum: Tensor
    weighted: Tensor | None
    label: Tensor

    @staticmethod
    def start(labels: Tensor, entropy: bool) -> Running:
        """Before the first column."""

        def full(value: float) -> Tensor:
            return torch.full(labels.shape, value, dtype=torch.float32, device=labels.device)

        return Running(full(-torch.inf), full(0.0), full(0.0) if entropy else None, full(torch.nan))


Results = tuple[Tensor, Tensor, Tensor, Tensor]
State = tuple[Tensor, Tensor, Tensor]


class Primitives(Protocol):
    """The four operations that need a GPU; tests put torch's arithmetic on the CPU in their place."""

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """out = a @ b, summed and stored in float32."""

    def accumulate(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """out += a @ b, the same."""

    def fold(
        self,
        piece: Piece,
        compact: Compact,
        bias: Tensor | None,
        numbers: Numbers,
        running: Running,
        done: Results | None,
    ) -> None:
        """Fold a piece into the state; with `done`, the last columns, also write the results of its rows there."""

    def gradient(
        self, piece: Piece, compact: Compact, bias: Tensor | None, numbers: Numbers, state: State, out: Tensor
    ) -> None:
        """out = d(sum of grad * logprob) / d(logits), with state (grad, max, log_sum) [R]; `out` may be the logits."""


class Cuda:
    """cuBLAS and the kernels of the compiled module, on the current stream."""

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """See Primitives."""
        if a.dtype == torch.float32:
            torch.mm(a, b, out=out)
        else:
            torch.mm(a, b, out_dtype=torch.float32, out=out)

    def accumulate(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """See Primitives."""
        if a.dtype == torch.float32:
            torch.addmm(out, a, b, out=out)
        elif _adds_wide(a.dtype, a.device):
            torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
        else:
            out += torch.mm(a, b, out_dtype=torch.float32)

    def fold(
        self,
        piece: Piece,
        compact: Compact,
        bias: Tensor | None,
        numbers: Numbers,
        running: Running,
        done: Results | None,
    ) -> None:
        """See Primitives."""
        state = (running.max, running.sum, running.weighted, running.label)
        part = [None if x is None else x[piece.rows] for x in state]
        rows = None if compact.rows is None else compact.rows[piece.rows]
        # Without a list of rows the results of a piece begin at its first row.
        begin = piece.begin if rows is None else 0
        results = [x.view(-1)[begin:] if x.numel() else None for x in done or ()] or [None] * 4
        succeed(
            native.module().cuda_fold(
                *_chunk(piece, compact, bias),
                *numbers,
                *map(address, part),
                address(rows),
                *map(address, results),
                *place(piece.logits),
            )
        )

    def gradient(
        self, piece: Piece, compact: Compact, bias: Tensor | None, numbers: Numbers, state: State, out: Tensor
    ) -> None:
        """See Primitives."""
        part = [x[piece.rows].data_ptr() for x in state]
        succeed(
            native.module().cuda_chunk_gradient(
                *_chunk(piece, compact, bias),
                CODES[out.dtype],
                out.data_ptr(),
                out.stride(0),
                *numbers,
                *part,
                *place(out),
            )
        )


def gather(hidden: Tensor, labels: Tensor, mask: Tensor | None, rows: Tensor | None) -> Compact:
    """The wanted rows side by side; a mask is turned into rows here, which waits for the GPU."""
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    if mask is not None:
        rows = mask.reshape(-1).nonzero()[:, 0]
    if rows is None:
        return Compact(hidden, labels, None)
    return Compact(hidden.index_select(0, rows), labels.index_select(0, rows), rows)


def plan(num_rows: int, vocab: int, depth: int) -> tuple[int, int]:
    """Rows and columns of a chunk; `depth` is that of the weight, where a slice of its gradient has to fit too.

    >>> plan(410, 151936, 0), plan(8192, 151936, 4096), plan(3, 100, 64)
    ((410, 81664), (8192, 4096), (3, 100))
    """
    rows = max(1, min(num_rows, CHUNK_ROWS))
    columns = CHUNK_BYTES // (4 * max(rows, depth)) // COLUMN_STEP * COLUMN_STEP
    return rows, min(vocab, max(columns, COLUMN_STEP))


def spans(length: int, step: int) -> Iterator[tuple[int, int]]:
    """[begin, end) that cover `length`.

    >>> list(spans(5, 2))
    [(0, 2), (2, 4), (4, 5)]
    """
    return ((begin, min(begin + step, length)) for begin in range(0, length, step))


def kept_shape(num_rows: int, vocab: int, keep: bool) -> tuple[int, ...]:
    return (num_rows, vocab) if keep and 4 * num_rows * vocab <= KEEP_BYTES else (0,)


def view(kept: Tensor, buffer: Tensor, begin: int, end: int, first: int, last: int) -> Tensor:
    """Where the float32 logits of a chunk are: in the kept ones, or at the start of the buffer."""
    if kept.numel():
        return kept[begin:end, first:last]
    return buffer[: (end - begin) * (last - first)].view(end - begin, last - first)


@cache
def _adds_wide(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this torch adds 16-bit products to a float32 matrix: at first it wanted that one in 16 bit too."""
    one = torch.zeros(8, 8, dtype=dtype, device=device)
    wide = one.float()
    try:
        torch.addmm(wide, one, one, out_dtype=torch.float32, out=wide)
    except RuntimeError:
        return False
    return True


def _chunk(piece: Piece, compact: Compact, bias: Tensor | None) -> tuple[int, ...]:
    logits = piece.logits
    labels = compact.labels[piece.rows]
    return (
        logits.data_ptr(),
        *logits.shape,
        logits.stride(0),
        piece.first,
        address(bias),
        labels.data_ptr(),
    )
