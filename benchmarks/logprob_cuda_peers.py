"""The ways that benchmarks/logprob_cuda.py times: ours, and the peers that are installed, as their users call them.

A way turns its leaves (logits, or hidden states and weight) into log-probs [N]. One that takes a mask is given it, one
that takes none computes every row.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor
from torch.nn import functional

from rl_think_ext.kernels import linear_masked_logprob, masked_logprob

DENSITIES = (1.0, 0.5, 0.05)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PACKAGES = ("rl_think_ext", "torch", "triton", "trl", "liger-kernel", "cut-cross-entropy")
Formula = Callable[..., Tensor]


@dataclass(frozen=True)
class Data:
    """Inputs of one case, on the GPU."""

    leaves: tuple[Tensor, ...]  # (logits [N, V],) or (hidden [N, D], weight [V, D])
    labels: Tensor  # [N] int64
    grad: Tensor  # [N] float32: gradient of the log-probs
    masks: dict[float, Tensor]  # density -> [N] bool
    rows: dict[float, Tensor]  # density -> [R] int64

    def ignoring(self, density: float) -> Tensor:
        """Labels with -100 on masked rows."""
        return self.labels.masked_fill(~self.masks[density], -100)


@dataclass(frozen=True)
class Way:
    """`family` is ours, peer, or compact (a peer given the wanted rows only); `destroys`: the logits are gone after."""

    name: str
    family: str
    density: float
    formula: Formula
    destroys: bool = False


def draw(fused: bool, dtype: torch.dtype, num_rows: int, vocab: int, depth: int, seed: int) -> Data:
    """Logits of standard deviation 2, straight or as hidden @ weight.T."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="cuda").normal_(generator=generator)

    leaves = (normal(num_rows, depth), normal(vocab, depth).mul_(2 * depth**-0.5)) if fused else ()
    leaves = leaves or (normal(num_rows, vocab).mul_(2),)
    order = torch.randperm(num_rows, generator=generator, device="cuda")
    rows = {d: order[: max(1, round(d * num_rows))].sort().values for d in DENSITIES}
    masks = {d: torch.zeros(num_rows, dtype=torch.bool, device="cuda").index_fill(0, r, True) for d, r in rows.items()}
    labels = torch.randint(0, vocab, (num_rows,), generator=generator, device="cuda")
    return Data(leaves, labels, torch.randn(num_rows, generator=generator, device="cuda"), masks, rows)


def versions() -> dict[str, str]:
    """Of whatever a ratio here depends on; "not installed" is an answer too."""

    def found(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    return {name: found(name) for name in PACKAGES}


def log_softmax(x: Tensor, labels: Tensor) -> Tensor:
    return functional.log_softmax(x, -1).gather(-1, labels[:, None])[:, 0]


def cross_entropy(x: Tensor, labels: Tensor) -> Tensor:
    return -functional.cross_entropy(x, labels, reduction="none")


def log_sum_exp(x: Tensor, labels: Tensor) -> Tensor:
    """Float32 inside, whatever the dtype: what torch.compile is given too."""
    wide = x.float()
    return wide.gather(-1, labels[:, None])[:, 0] - wide.logsumexp(-1)


def ways(fused: bool, data: Data) -> Iterator[Way]:
    """All of a case that are installed here."""
    for density in DENSITIES:
        yield from _ours(fused, data, density)
        yield from (_fused_peers if fused else _logits_peers)(data, density)


def _ours(fused: bool, data: Data, density: float) -> Iterator[Way]:
    function, labels, mask, rows = (
        linear_masked_logprob if fused else masked_logprob,
        data.labels,
        data.masks[density],
        data.rows[density],
    )
    # Dense without any mask, as one would call it; `rows` are those that nothing has to wait for.
    if density < 1:
        yield Way("ours, mask", "ours", density, lambda *x: function(*x, labels, mask, backend="cuda"))
    yield Way("ours, rows", "ours", density, lambda *x: function(*x, labels, rows=rows, backend="cuda"))
    if not fused:
        yield Way(
            "ours, rows, in place",
            "ours",
            density,
            lambda x: masked_logprob(x, labels, rows=rows, backend="cuda", inplace_backward=True),
            destroys=True,
        )


def _logits_peers(data: Data, density: float) -> Iterator[Way]:
    labels, ignoring, mask, rows = data.labels, data.ignoring(density), data.masks[density], data.rows[density]
    compiled = torch.compile(log_sum_exp, dynamic=False)
    if density == 1:
        yield Way("log_softmax + gather", "peer", density, lambda x: log_softmax(x, labels))
        yield Way("logsumexp", "peer", density, lambda x: log_sum_exp(x, labels))
        yield Way("torch.compile", "peer", density, lambda x: compiled(x, labels))
    else:
        few = labels[rows]
        yield Way("compacted log_softmax", "compact", density, lambda x: log_softmax(x.index_select(0, rows), few))
        yield Way("compacted torch.compile", "compact", density, lambda x: compiled(x.index_select(0, rows), few))
    yield Way("F.cross_entropy", "peer", density, lambda x: cross_entropy(x, ignoring))
    if (trl := _attribute("trl.trainer.utils", "selective_log_softmax")) is not None:
        yield Way(
            "TRL selective_log_softmax", "peer", density, lambda x: trl(x[None], labels[None], row_mask=mask[None])[0]
        )
    if (liger := _attribute("liger_kernel.transformers.functional", "liger_cross_entropy")) is not None:
        # It puts the gradient over the logits in its forward.
        yield Way("Liger", "peer", density, lambda x: -liger(x, ignoring, reduction="none"), destroys=True)


def _fused_peers(data: Data, density: float) -> Iterator[Way]:
    labels, ignoring, rows = data.labels, data.ignoring(density), data.rows[density]
    few = labels[rows]
    compiled = torch.compile(lambda hidden, weight, own: log_sum_exp(hidden @ weight.t(), own), dynamic=False)
    if density == 1:
        yield Way("matmul + log_softmax", "peer", density, lambda h, w: log_softmax(h @ w.t(), labels))
        yield Way("torch.compile", "peer", density, lambda h, w: compiled(h, w, labels))
    else:
        yield Way(
            "compacted matmul + log_softmax",
            "compact",
            density,
            lambda h, w: log_softmax(h.index_select(0, rows) @ w.t(), few),
        )
    if (chunked := _attribute("trl.kernels", "ChunkedLogProbFunction")) is not None:
        size = _attribute("trl.trainer.utils", "_CHUNKED_LOGPROB_CHUNK_SIZE") or 8192
        yield Way(
            "TRL chunked head",
            "peer" if density == 1 else "compact",
            density,
            # TRL drops masked rows before it, as here.
            lambda h, w: chunked.apply(h.index_select(0, rows), w, None, few, 1.0, size, None, 1.0, ())[0],
        )
    if (liger := _attribute("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy")) is not None:
        yield Way("Liger fused", "peer", density, lambda h, w: -liger(h, w, ignoring, reduction="none"))
    if (cce := _attribute("cut_cross_entropy", "linear_cross_entropy")) is not None:
        yield Way("CCE", "peer", density, lambda h, w: -cce(h, w, ignoring, reduction="none"))


def _attribute(module: str, name: str) -> Callable[..., Tensor] | None:
    """Of a package that may not be installed, or not in the version that has it."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, OSError):
        return None
