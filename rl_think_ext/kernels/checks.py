"""Every check of the kernels' arguments, in one place: a backend never sees a bad one (F16)."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def check_backend(backend: str, available: tuple[str, ...]) -> None:
    """An explicit backend that is not there raises; "auto" never does."""
    if backend != "auto" and backend not in available:
        raise ValueError(f"backend is 'auto' or one of {available} here, got {backend!r}")


def check_numbers(dtype: torch.dtype, temperature: float, softcap: float | None, name: str) -> None:
    """Dtype of the floating input, temperature and cap."""
    if dtype not in FLOATS:
        raise ValueError(f"{name} is float32, bfloat16 or float16, got {dtype}")
    if not temperature > 0:
        raise ValueError(f"temperature is above 0, got {temperature}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap is above 0 or None, got {softcap}")


def check_bias(bias: Tensor | None, weight: Tensor) -> None:
    """Shape, dtype and device of the bias: one of another shape would broadcast without a word."""
    fits = bias is None or (bias.shape, bias.dtype, bias.device) == (weight.shape[:1], weight.dtype, weight.device)
    if bias is not None and not fits:
        raise ValueError(f"bias is [{weight.shape[0]}] {weight.dtype} like weight, got {list(bias.shape)} {bias.dtype}")


def check_rows(
    rows: torch.Size, vocab: int, labels: Tensor, mask: Tensor | None, device: torch.device, name: str
) -> tuple[Tensor, Tensor | None]:
    """Shape, dtype, device and range of labels and mask; labels come back as int64."""
    if labels.shape != rows:
        raise ValueError(
            f"labels have the shape of {name} without its last dimension, {list(rows)}; got {list(labels.shape)}"
        )
    if labels.dtype not in INTEGERS:
        raise ValueError(f"labels are integers, got {labels.dtype}")
    if mask is not None and (mask.shape != rows or mask.dtype != torch.bool):
        raise ValueError(f"mask is bool {list(rows)}, got {mask.dtype} {list(mask.shape)}")
    for what, tensor in (("labels", labels), ("mask", mask)):
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{what} is on {tensor.device} and {name} on {device}")
    labels = labels.long()
    bad = (labels < 0) | (labels >= vocab)
    if mask is not None:
        bad &= mask
    if bad.any():
        row = int(bad.reshape(-1).nonzero()[0])
        raise ValueError(f"labels: row {row} holds {int(labels.reshape(-1)[row])}, outside 0 … {vocab - 1}")
    return labels, mask
