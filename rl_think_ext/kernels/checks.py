"""The checks of the kernels' arguments, in one place: a backend never sees a bad one (F16).

What only the values of labels and rows tell is checked where they are read: here for the torch backend, in the op for
the compiled ones, because a compiled graph cannot look at values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def check_plain(x: Tensor, name: str) -> None:
    """Refuse what would compute on the wrong numbers without a word: functorch's wrappers and shards of a tensor."""
    kind = type(x)
    if kind is not Tensor and kind is not nn.Parameter and hasattr(x, "device_mesh"):
        raise NotImplementedError(
            f"{name} is a DTensor: gather it first ({name}.full_tensor()), or call this inside the module's own forward"
        )
    if torch.compiler.is_compiling():
        return
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError("masked_logprob runs under no functorch transform (vmap, grad, jvp): call it plainly")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        raise NotImplementedError(f"{name} carries a forward-mode tangent: masked_logprob has gradients backward only")


def check_numbers(x: Tensor, temperature: float, softcap: float | None, name: str) -> None:
    """Dtype and dimensions of the floating input, temperature and cap."""
    if x.dtype not in FLOATS:
        raise ValueError(f"{name} is float32, bfloat16 or float16, got {x.dtype}")
    if x.layout is not torch.strided:
        raise ValueError(f"{name} is a dense tensor, got {x.layout}")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name} has a last dimension of at least 1, got {list(x.shape)}")
    if not is_scale(temperature):
        raise ValueError(f"temperature is above 0, got {temperature}")
    if softcap is not None and not is_scale(softcap):
        raise ValueError(f"softcap is above 0 or None, got {softcap}")


def is_scale(value: float) -> bool:
    """Whether logits can be divided by it: above 0, and neither it nor its inverse is lost in float32."""
    return 1e-30 <= value <= 1e30


def check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Shape, dtype and device of weight and bias: one of another shape would broadcast without a word."""
    wanted = (2, hidden.shape[-1], hidden.dtype, hidden.device)
    if weight.dim() != 2 or (weight.dim(), weight.shape[1], weight.dtype, weight.device) != wanted:
        raise ValueError(
            f"weight is [V, {hidden.shape[-1]}] {hidden.dtype} on {hidden.device} to fit hidden, got "
            f"{list(weight.shape)} {weight.dtype} on {weight.device}"
        )
    if weight.shape[0] == 0:
        raise ValueError(
            "weight has no rows: outside the module's own forward a sharded head is empty; gather it first"
        )
    fits = bias is None or (bias.shape, bias.dtype, bias.device) == (weight.shape[:1], weight.dtype, weight.device)
    if bias is not None and not fits:
        raise ValueError(f"bias is [{weight.shape[0]}] {weight.dtype} like weight, got {list(bias.shape)} {bias.dtype}")


def check_rows(
    x: Tensor, labels: Tensor, mask: Tensor | None, rows: Tensor | None, name: str
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Shape, dtype and device of labels, mask and rows; labels come back as int64, and all three contiguous."""
    shape = x.shape[:-1]
    if labels.shape != shape:
        raise ValueError(
            f"labels have the shape of {name} without its last dimension, {list(shape)}; got {list(labels.shape)}"
        )
    if labels.dtype not in INTEGERS:
        raise ValueError(f"labels are integers, got {labels.dtype}")
    if labels.device != x.device:
        raise ValueError(f"labels is on {labels.device} and {name} on {x.device}")
    labels = labels.long().contiguous()
    if mask is not None:
        if rows is not None:
            raise ValueError("mask and rows both say which rows are wanted: give one of them")
        if mask.shape != shape or mask.dtype != torch.bool:
            raise ValueError(f"mask is bool {list(shape)}, got {mask.dtype} {list(mask.shape)}")
        if mask.device != x.device:
            raise ValueError(f"mask is on {mask.device} and {name} on {x.device}")
        mask = mask.contiguous()
    elif rows is not None:
        if rows.dim() != 1 or rows.dtype != torch.int64:
            raise ValueError(f"rows is int64 [R], got {rows.dtype} {list(rows.shape)}")
        if rows.device != x.device:
            raise ValueError(f"rows is on {rows.device} and {name} on {x.device}")
        rows = rows.contiguous()
    return labels, mask, rows


def check_memory(out: Tensor | None, inplace: bool, logits: Tensor) -> None:
    """Memory for the gradient: like the logits, one place for it, and a place of its own for each number."""
    if inplace and _has_no_room(logits):
        raise ValueError("rows of logits share memory, or are a negative view: leave inplace_backward off")
    if out is None:
        return
    if inplace:
        raise ValueError("backward_out and inplace_backward both say where the gradient goes: give one of them")
    if (out.shape, out.dtype, out.device) != (logits.shape, logits.dtype, logits.device):
        raise ValueError(
            f"backward_out is {list(logits.shape)} {logits.dtype} like logits, got {list(out.shape)} {out.dtype}"
        )
    if out.requires_grad:
        raise ValueError("backward_out takes a gradient and can have none of its own: detach it")
    if _has_no_room(out):
        raise ValueError("rows of backward_out share memory, or are a negative view: give it memory of its own")
    if not torch.compiler.is_compiling() and out.untyped_storage()._cdata == logits.untyped_storage()._cdata:
        raise ValueError("backward_out and logits share a storage: give it memory of its own, or inplace_backward=True")


def _has_no_room(x: Tensor) -> bool:
    """Whether x cannot be written: two elements may be one, as in an expanded tensor, or it is a negative view."""
    if not torch.compiler.is_compiling() and x.is_neg():
        return True
    reach = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride < reach:
            return True
        reach += (size - 1) * stride
    return False


def check_values(labels: Tensor, mask: Tensor | None, rows: Tensor | None, vocab: int | None) -> Tensor | None:
    """For the torch backend: rows as a mask, and (with `vocab`) the range of the labels that will be read."""
    if rows is not None:
        last = torch.cat([rows.new_tensor([-1]), rows[:-1]])
        bad = (rows <= last) | (rows >= labels.numel())
        if bad.any():
            entry = int(bad.nonzero()[0])
            raise ValueError(
                f"rows: entry {entry} is {int(rows[entry])}; they are numbers of the {labels.numel()} rows, each above "
                "the last"
            )
        mask = torch.zeros(labels.numel(), dtype=torch.bool, device=labels.device)
        mask[rows] = True
        mask = mask.view(labels.shape)
    if vocab is not None:
        bad = (labels < 0) | (labels >= vocab)
        if mask is not None:
            bad &= mask
        if bad.any():
            row = int(bad.reshape(-1).nonzero()[0])
            raise ValueError(f"labels: row {row} holds {int(labels.reshape(-1)[row])}, outside 0 … {vocab - 1}")
    return mask


def autocast(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The head's inputs in the dtype that autocast is on for; as they are where it is off, or they are float64."""
    kind = hidden.device.type
    if not torch.is_autocast_enabled(kind) or hidden.dtype == torch.float64:
        return hidden, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
