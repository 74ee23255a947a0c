"""Tensors as the compiled module takes them: addresses and strides, without a copy wherever that is possible."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_NOT_READ = 64
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class Grid(NamedTuple):
    """Rows of a tensor [..., V]: row r is at (r // inner) * outer_stride + (r % inner) * inner_stride elements."""

    tensor: Tensor
    inner: int
    outer_stride: int
    inner_stride: int

    @property
    def address(self) -> tuple[int, int, int, int]:
        """Base and strides, in the order of the compiled calls."""
        return address(self.tensor), self.inner, self.outer_stride, self.inner_stride


def grid(x: Tensor) -> Grid:
    """The rows of x: logits[:, :-1] is not copied; a last dimension with holes is, and so are 4 dimensions that do not
    collapse to 3."""
    if x.is_neg():
        x = x.resolve_neg()
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        x = x.contiguous()
    if x.dim() == 2:
        return Grid(x, 1, x.stride(0), 0)
    if x.dim() == 1:
        return Grid(x, 1, 0, 0)
    if x.dim() > 3:
        x = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])  # a view wherever that is possible
    return Grid(x, max(1, x.shape[1]), x.stride(0), x.stride(1))


def address(x: Tensor | None) -> int:
    """Of the first element; 0 for None.

    Raises:
        ValueError: the tensor has elements and no memory, as a parameter that FSDP keeps elsewhere for now.
    """
    if x is None:
        return 0
    found = x.data_ptr()
    if found == 0 and x.numel() > 0:
        raise ValueError(f"the memory of a tensor {list(x.shape)} was freed: gather it, as FSDP does in a forward")
    return found


def chosen(labels: Tensor, mask: Tensor | None, rows: Tensor | None) -> tuple[int, int, int, int]:
    """Number of rows, listed rows and how many, mask: in the order of the compiled calls."""
    if rows is None:
        return labels.numel(), 0, 0, address(mask)
    # An empty tensor has no address, and no list means all rows: one that is never read says that there is a list.
    return labels.numel(), address(rows) or _NOT_READ, rows.numel(), 0
