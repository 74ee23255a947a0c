"""The ways that benchmarks/logprob.py times: ours, the peers, torch that compacts first, and what no way can beat.

A way takes no arguments, and returns log-probs [N] (and, where it goes backward, gradients). Peers are called as their
own users call them; where one takes a mask it is given the mask, where it takes none it computes every row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions, functional
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, selective_log_softmax

from rl_think_ext.kernels import linear_masked_logprob, masked_logprob

DENSITIES = (1.0, 0.5, 0.05)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SEQUENCES = 8  # TRL loops over sequences: its rows come as [8, N / 8]
Call = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Way:
    """What is timed.

    `family` is ours, torch (our reference), peer, compact (peers that compact first) or floor. `density` is None for
    a way that computes every row whatever the mask. `prepare` runs before the clock starts.
    """

    name: str
    family: str
    density: float | None
    call: Call
    prepare: Callable[[], object] | None = None


@dataclass(frozen=True)
class Data:
    """Inputs of one case. Masks are nested: the rows of a sparser one are among those of a denser one."""

    inputs: tuple[Tensor, ...]  # (logits [N, V],) or (hidden [N, D], weight [V, D]); no gradient wanted
    labels: Tensor  # [N]
    grad: Tensor  # [N] float32, the gradient of the log-probs
    masks: dict[float, Tensor]  # density -> [N] bool
    rows: dict[float, Tensor]  # density -> [R] int64

    def ignoring(self, density: float) -> Tensor:
        """Labels with -100 on masked rows."""
        return self.labels.masked_fill(~self.masks[density], -100)


def draw(kind: str, dtype: torch.dtype, vocab: int, num_rows: int, depth: int, seed: int) -> Data:
    """Logits of standard deviation 2, straight or as hidden @ weight.T."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "logits":
        inputs = ((torch.randn(num_rows, vocab, generator=generator) * 2).to(dtype),)
    else:
        weight = torch.empty(vocab, depth).normal_(generator=generator).mul_(2 * depth**-0.5)
        inputs = (torch.randn(num_rows, depth, generator=generator).to(dtype), weight.to(dtype))
    order = torch.randperm(num_rows, generator=generator)
    rows = {d: order[: max(1, round(d * num_rows))].sort().values for d in DENSITIES}
    masks = {d: torch.zeros(num_rows, dtype=torch.bool).index_fill(0, r, True) for d, r in rows.items()}
    labels = torch.randint(0, vocab, (num_rows,), generator=generator)
    return Data(inputs, labels, torch.randn(num_rows, generator=generator), masks, rows)


# From logits [N, V].


def log_softmax(x: Tensor, labels: Tensor) -> Tensor:
    return functional.log_softmax(x, -1).gather(-1, labels[:, None])[:, 0]


def cross_entropy(x: Tensor, labels: Tensor) -> Tensor:
    return -functional.cross_entropy(x, labels, reduction="none")


def log_sum_exp(x: Tensor, labels: Tensor) -> Tensor:
    """What torch.compile is given: float32 inside, whatever the dtype."""
    wide = x.float()
    return wide.gather(-1, labels[:, None])[:, 0] - wide.logsumexp(-1)


def trl_selective(x: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """TRL's own, on its CPU path."""
    shape = (SEQUENCES, x.shape[0] // SEQUENCES)
    row_mask = None if mask is None else mask.view(shape)
    return selective_log_softmax(x.view(*shape, x.shape[1]), labels.view(shape), row_mask=row_mask).reshape(-1)


def compact(x: Tensor, labels: Tensor, rows: Tensor, way: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Only the wanted rows, by index; 0 elsewhere."""
    found = way(x.index_select(0, rows), labels[rows])
    return found.new_zeros(x.shape[0]).index_put((rows,), found)


# Fused: hidden [N, D], weight [V, D].


def multiplied(hidden: Tensor, weight: Tensor, labels: Tensor, way: Callable[..., Tensor]) -> Tensor:
    return way(hidden @ weight.t(), labels)


def trl_chunked(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """TRL's chunked head with its own chunk size, no optional outputs."""
    return ChunkedLogProbFunction.apply(hidden, weight, None, labels, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ())[
        0
    ]


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, options: LinearCrossEntropyOptions | None
) -> Tensor:
    return -functional.linear_cross_entropy(hidden, weight, labels, reduction="none", options=options)


Formula = Callable[..., Tensor]


def formulas(kind: str, data: Data) -> Iterator[tuple[str, str, float | None, Formula]]:
    """(name, family, density, inputs -> log-probs [N]) of every way but the floors."""
    labels, fused = data.labels, kind == "fused"
    ours = linear_masked_logprob if fused else masked_logprob
    for density in DENSITIES:
        mask = None if density == 1 else data.masks[density]
        yield "ours", "ours", density, partial(_ours, ours, labels, mask, {})
        yield "ours (torch)", "torch", density, partial(_ours, ours, labels, mask, {"backend": "torch"})
        if not fused:
            yield "TRL selective_log_softmax", "peer", density, partial(trl_selective, labels=labels, mask=mask)
            yield "F.cross_entropy", "peer", density, partial(cross_entropy, labels=data.ignoring(density))
    compiled = torch.compile(_fused_log_sum_exp if fused else log_sum_exp, dynamic=False)
    yield "torch.compile", "peer", None, partial(compiled, labels=labels)
    if fused:
        yield "TRL chunked head", "peer", None, partial(trl_chunked, labels=labels)
        for name, way in (("TRL selective_log_softmax", trl_selective), ("log_softmax + gather", log_softmax)):
            yield f"matmul, {name}", "peer", None, partial(multiplied, labels=labels, way=way)
        for name, options in linear_options().items():
            yield name, "peer", None, partial(linear_cross_entropy, labels=labels, options=options)
    else:
        yield "log_softmax + gather", "peer", None, partial(log_softmax, labels=labels)
    yield from _compacted(fused, data)


def linear_options() -> dict[str, LinearCrossEntropyOptions | None]:
    """F.linear_cross_entropy: without chunks, with those that it picks, and with larger ones."""
    return {
        "F.linear_cross_entropy": None,
        "F.linear_cross_entropy, auto chunks": LinearCrossEntropyOptions(),
        "F.linear_cross_entropy, 64 rows": LinearCrossEntropyOptions(batch_chunk_size=64),
    }


def _ours(function: Callable[..., Tensor], labels: Tensor, mask: Tensor | None, more: dict, *inputs: Tensor) -> Tensor:
    return function(*inputs, labels, mask, **more)


def _fused_log_sum_exp(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return log_sum_exp(hidden @ weight.t(), labels)


def _compacted(fused: bool, data: Data) -> Iterator[tuple[str, str, float, Formula]]:
    def one(*inputs: Tensor, rows: Tensor, way: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        if not fused:
            return compact(inputs[0], data.labels, rows, way)
        return compact(inputs[0], data.labels, rows, lambda hidden, labels: way(hidden @ inputs[1].t(), labels))

    for density in DENSITIES[1:]:
        rows = data.rows[density]
        yield "compacted log_softmax", "compact", density, partial(one, rows=rows, way=log_softmax)
        yield "compacted F.cross_entropy", "compact", density, partial(one, rows=rows, way=cross_entropy)
        # Selected inside: Inductor reads the wanted rows where they lie.
        compiled = torch.compile(partial(one, way=log_sum_exp), dynamic=False)
        yield "compacted torch.compile", "compact", density, partial(compiled, rows=rows)


def ways(kind: str, backward: bool, data: Data) -> list[Way]:
    """Every way of one case, floors included."""
    leaves = tuple(x.detach().requires_grad_(backward) for x in data.inputs)
    found = [
        Way(name, family, density, partial(_call, formula, leaves, data.grad if backward else None))
        for name, family, density, formula in formulas(kind, data)
    ]
    if kind == "logits" and backward:
        found += _in_place(data)
    return [*found, *_floors(kind, data)]


def _call(formula: Formula, leaves: tuple[Tensor, ...], grad: Tensor | None) -> tuple[Tensor, ...]:
    if grad is None:
        with torch.no_grad():
            return (formula(*leaves),)
    logprob = formula(*leaves)
    return (logprob.detach(), *torch.autograd.grad(logprob, leaves, grad.to(logprob.dtype)))


def _in_place(data: Data) -> Iterator[Way]:
    """Ours with the gradient over the logits, which are written anew before each call."""
    work = data.inputs[0].clone().requires_grad_()

    @torch.no_grad()
    def restore() -> None:
        work.copy_(data.inputs[0])

    for density in DENSITIES:
        mask = None if density == 1 else data.masks[density]
        formula = partial(_ours, masked_logprob, data.labels, mask, {"inplace_backward": True})
        yield Way("ours, in place", "ours", density, partial(_call, formula, (work,), data.grad), restore)


def _floors(kind: str, data: Data) -> Iterator[Way]:
    """Reading once, copying once, and the bare product, into memory that is there."""
    last = data.inputs[-1]
    # 16-bit values are read as float32: torch's sum of bf16 is bound by its conversions, not by memory.
    words = last.view(torch.float32)
    yield Way("read (x.sum)", "floor", None, lambda: (words.sum(),))
    if kind == "logits":
        copied = torch.empty_like(last)
        yield Way("copy (y.copy_(x))", "floor", None, lambda: (copied.copy_(last),))
    else:
        hidden, product = data.inputs[0], last.new_empty(data.inputs[0].shape[0], last.shape[0])
        yield Way("bare matmul", "floor", None, lambda: (torch.mm(hidden, last.t(), out=product),))


def raw_kernel(logits: Tensor, labels: Tensor) -> Callable[[], object] | None:
    """The compiled forward of contiguous float32 logits [N, V] with nothing around it; None where it is not built."""
    try:
        from rl_think_ext.kernels import _native
    except ImportError:
        return None
    (num_rows, vocab), out = logits.shape, torch.empty(3, logits.shape[0])
    outputs = [x.data_ptr() for x in out]
    wanted = (labels.data_ptr(), num_rows, 0, 0, 0)  # all rows: none listed, no mask
    numbers = (0, logits.data_ptr(), 1, vocab, 0, vocab, *wanted, 1.0, 0.0)  # 0: float32; temperature 1, no cap

    def call(keep: tuple[Tensor, ...] = (logits, labels, out)) -> object:
        return _native.forward(*numbers, outputs[0], 0, outputs[1], outputs[2], torch.get_num_threads())

    return call
