"""The chunks of the CUDA half of linear_masked_logprob, on the CPU: which rows and columns meet, not how fast.

What needs a GPU, four operations on one chunk, is done here by torch's arithmetic in float32 (`OnCpu`); the order of
chunks, what is kept, compacted, scattered, scaled and left out is the product's own. Oracle: float64 and autograd.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from rl_think_ext.kernels import cuda_chunks, cuda_linear, native
from rl_think_ext.kernels.cuda_chunks import Compact, Numbers, Piece, Results, Running, State

if native.module() is None:
    pytest.skip("the ops are registered with the compiled module, which is not here", allow_module_level=True)

LOG2E = 1.4426950408889634
DEPTH = 6
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rounding of what is returned, and of the logits' gradient on its way into the two products.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 5e-3, torch.float16: 7e-4}


class OnCpu:
    """`cuda_chunks.Primitives` by torch, and a record of the chunks that were asked for."""

    def __init__(self) -> None:
        self.products: list[tuple[int, ...]] = []
        self.chunks: list[tuple[int, int]] = []

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        self.products.append((*a.shape, b.shape[1]))
        out.copy_(a.float() @ b.float())

    def accumulate(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        out += a.float() @ b.float()

    def fold(
        self,
        piece: Piece,
        compact: Compact,
        bias: Tensor | None,
        numbers: Numbers,
        running: Running,
        done: Results | None,
    ) -> None:
        self.chunks.append((piece.begin, piece.first))
        rows = piece.rows
        v = _capped(piece, bias, numbers)[0]
        top = torch.maximum(running.max[rows], v.amax(1))
        before, u = (running.max[rows] - top) / numbers.temperature, (v - top[:, None]) / numbers.temperature
        if running.weighted is not None:
            # The first time `before` is -inf, and 0 * -inf is NaN.
            moved = running.weighted[rows] + running.sum[rows] * before.clamp(min=-150) * LOG2E
            running.weighted[rows] = moved * before.exp() + (u.exp() * u).sum(1) * LOG2E
        running.sum[rows] = running.sum[rows] * before.exp() + u.exp().sum(1)
        running.max[rows] = top
        own = compact.labels[rows] - piece.first
        here = (own >= 0) & (own < v.shape[1])
        label = v.gather(1, own.clamp(0, v.shape[1] - 1)[:, None])[:, 0]
        running.label[rows] = torch.where(here, label, running.label[rows])
        if done is not None:
            self._finish(rows, compact, numbers, running, done)

    def _finish(self, rows: slice, compact: Compact, numbers: Numbers, running: Running, done: Results) -> None:
        logprob, entropy, highest, log_sum = (x.view(-1) for x in done)
        to = torch.arange(rows.start, rows.stop) if compact.rows is None else compact.rows[rows]
        assert logprob.numel() >= to.numel()
        log_sum[to], highest[to] = running.sum[rows].log(), running.max[rows]
        logprob[to] = (running.label[rows] - running.max[rows]) / numbers.temperature - log_sum[to]
        if running.weighted is not None:
            entropy[to] = log_sum[to] - running.weighted[rows] / LOG2E / running.sum[rows]

    def gradient(
        self, piece: Piece, compact: Compact, bias: Tensor | None, numbers: Numbers, state: State, out: Tensor
    ) -> None:
        grad, highest, log_sum = (x[piece.rows, None] for x in state)
        v, slope = _capped(piece, bias, numbers)
        dz = -((v - highest) / numbers.temperature - log_sum).exp()
        own = compact.labels[piece.rows] - piece.first
        dz += torch.arange(v.shape[1])[None] == own[:, None]
        out.copy_(grad / numbers.temperature * dz * slope)


def _capped(piece: Piece, bias: Tensor | None, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """v of a chunk and dv/dx."""
    x = piece.logits if bias is None else piece.logits + bias[piece.first : piece.first + piece.logits.shape[1]]
    if not numbers.softcap:
        return x, torch.ones(())
    bent = torch.tanh(x / numbers.softcap)
    return numbers.softcap * bent, 1 - bent * bent


class Case(NamedTuple):
    """One call: arguments of the op, and its answer in float64."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor
    mask: Tensor | None
    rows: Tensor | None
    temperature: float
    softcap: float
    logprob: Tensor
    entropy: Tensor
    grad: Tensor
    gradients: tuple[Tensor, Tensor, Tensor | None]

    def forward(self, entropy: bool, keep: bool, run: OnCpu) -> tuple[Tensor, ...]:
        return cuda_linear.forward(*self[:8], entropy, keep, primitives=run)

    def backward(self, forward: tuple[Tensor, ...], needs: tuple[bool, bool, bool], run: OnCpu) -> tuple[Tensor, ...]:
        return cuda_linear.backward(self.grad, *self[:6], *forward[2:5], *self[6:8], *needs, primitives=run)


def case(dtype: torch.dtype, rows: str, num_rows: int, vocab: int, bias: bool, temperature: float, cap: float) -> Case:
    """Labels of unwanted rows are wild: whoever reads one is found out."""
    draw = torch.Generator().manual_seed(num_rows * vocab)
    hidden, weight, offset = (
        torch.randn(shape, generator=draw).to(dtype) for shape in ((num_rows, DEPTH), (vocab, DEPTH), vocab)
    )
    labels = torch.randint(vocab, (num_rows,), generator=draw)
    wanted = torch.rand(num_rows, generator=draw) < {"all": 2, "none": -1}.get(rows, 0.5)
    labels[~wanted] = -100
    wide = [x.double().requires_grad_() for x in (hidden, weight, offset)]
    x = wide[0][wanted] @ wide[1].T + (wide[2] if bias else 0)
    all_logprob = ((cap * torch.tanh(x / cap) if cap else x) / temperature).log_softmax(-1)
    logprob = torch.zeros(num_rows, dtype=torch.float64)
    logprob[wanted] = all_logprob.gather(-1, labels[wanted, None])[:, 0]
    entropy = torch.zeros(num_rows, dtype=torch.float64)
    entropy[wanted] = -(all_logprob.exp() * all_logprob).sum(-1).detach()
    grad = torch.randn(num_rows, generator=draw)
    grads = torch.autograd.grad((logprob * grad).sum(), wide, allow_unused=True)
    return Case(
        hidden,
        weight,
        offset if bias else None,
        labels,
        wanted if rows == "mask" else None,
        wanted.nonzero()[:, 0] if rows in ("rows", "none") else None,
        temperature,
        cap,
        logprob.detach(),
        entropy,
        grad,
        (grads[0], grads[1], grads[2] if bias else None),
    )


def relative(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true).norm() / true.norm().clamp(min=1e-30))


# Rows and columns of a chunk, far under the product's, and the shape that is cut: 11 rows are not a multiple of 4, nor
# 23 columns of 10; 12 and 20 are; all in one chunk; a chunk an element; and the smallest.
CUTS = (
    ((4, 10), (11, 23)),
    ((4, 10), (12, 20)),
    ((1000, 1000), (11, 23)),
    ((1, 1), (3, 5)),
    ((1, 1), (1, 1)),
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", ["all", "mask", "rows"])
@pytest.mark.parametrize("keep", [False, True], ids=["recomputed", "kept"])
@pytest.mark.parametrize(("chunk", "shape"), CUTS)
def test_chunks_give_what_the_whole_gives(
    dtype: torch.dtype,
    rows: str,
    keep: bool,
    chunk: tuple[int, int],
    shape: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_chunks, "CHUNK_ROWS", chunk[0])
    monkeypatch.setattr(cuda_chunks, "CHUNK_BYTES", 4 * max(chunk[0], DEPTH) * chunk[1])
    monkeypatch.setattr(cuda_chunks, "COLUMN_STEP", chunk[1])
    for bias, temperature, cap in ((False, 1.0, 0.0), (True, 0.7, 3.0)):
        one = case(dtype, rows, *shape, bias, temperature, cap)
        found = one.forward(True, keep, OnCpu())
        torch.testing.assert_close(found[0].double(), one.logprob, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[1].double(), one.entropy, rtol=1e-5, atol=1e-5)
        gradients = one.backward(found, (True, True, bias), OnCpu())
        for gradient, true in zip(gradients, one.gradients, strict=True):
            if true is not None and shape[1] > 1:
                assert gradient.dtype == dtype and gradient.shape == true.shape
                assert relative(gradient, true) < TOLERANCE[dtype]


@pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=3)))
@pytest.mark.parametrize("keep", [False, True])
def test_only_what_is_needed(needs: tuple[bool, bool, bool], keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_chunks, "CHUNK_BYTES", 4 * 11 * 10)
    monkeypatch.setattr(cuda_chunks, "COLUMN_STEP", 10)
    one = case(torch.float32, "mask", 11, 23, True, 1.5, 0.0)
    run = OnCpu()
    found = one.backward(one.forward(False, keep, OnCpu()), needs, run)
    for need, gradient, true in zip(needs, found, one.gradients, strict=True):
        assert gradient.numel() == (true.numel() if need else 0)
        if need:
            assert relative(gradient, true) < 3e-6
    # Nothing needed, nothing multiplied; kept logits are not multiplied again.
    assert bool(run.products) == (any(needs) and (not keep or needs[1]))


def test_kept_logits_serve_two_backwards() -> None:
    """retain_graph: in float32 the gradient could go over the kept logits, and the second would be wrong."""
    one = case(torch.float32, "rows", 11, 23, True, 1.0, 0.0)
    forward = one.forward(False, True, OnCpu())
    first = one.backward(forward, (True, True, True), OnCpu())
    again = one.backward(forward, (True, True, True), OnCpu())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_what_does_not_fit_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    one = case(torch.bfloat16, "rows", 11, 23, False, 1.0, 0.0)
    assert one.rows is not None
    size = 4 * one.rows.numel() * 23
    for budget, shape in ((size, (one.rows.numel(), 23)), (size - 1, (0,))):
        monkeypatch.setattr(cuda_chunks, "KEEP_BYTES", budget)
        kept = one.forward(False, True, OnCpu())[4]
        assert tuple(kept.shape) == shape and kept.dtype == torch.float32


@pytest.mark.parametrize("rows", ["none", "rows"])
def test_no_row_is_wanted(rows: str) -> None:
    """All masked, and no rows at all: zeros of the right shapes, nothing left over from memory."""
    one = case(torch.bfloat16, rows, 7 if rows == "none" else 0, 300, True, 1.0, 0.0)
    found = one.forward(True, True, OnCpu())
    gradients = one.backward(found, (True, True, True), OnCpu())
    shapes = [one.labels.shape] * 4 + [one.hidden.shape, one.weight.shape, (300,)]
    for tensor, shape in zip((*found[:4], *gradients), shapes, strict=True):
        assert tensor.shape == shape and not tensor.any()


def test_a_label_nowhere_makes_its_row_nan() -> None:
    """With rows nobody looks at labels before; no memory is read for one that is out of range."""
    one = case(torch.float32, "rows", 9, 23, False, 1.0, 0.0)
    assert one.rows is not None
    one.labels[one.rows[1]] = 23
    found = one.forward(False, False, OnCpu())[0]
    assert found.isnan().nonzero()[:, 0].tolist() == [int(one.rows[1])]


def test_float16_gradients_that_would_underflow() -> None:
    """Gradients of 1e-7, as behind a mean over a large batch: float16 ends at 6e-8, its products long before."""
    one = case(torch.float16, "all", 11, 23, True, 1.0, 0.0)
    tiny = one._replace(grad=one.grad * 2.0**-20)
    run = OnCpu()
    found = tiny.backward(tiny.forward(False, False, run), (True, True, True), run)
    for gradient, true in zip(found, one.gradients, strict=True):
        assert true is not None
        # What is returned is float16 itself: its spacing there is 2^-24.
        assert float((gradient.double() - true * 2.0**-20).abs().max()) <= 2.0**-25 * 1.01


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_float16_scale_of_no_number(value: float) -> None:
    one = case(torch.float16, "all", 3, 5, False, 1.0, 0.0)
    odd = one._replace(grad=torch.full((3,), value))
    found = odd.backward(odd.forward(False, False, OnCpu()), (True, True, False), OnCpu())
    assert found[0].isfinite().all() == found[1].isfinite().all() == torch.tensor(value == 0.0)


def test_leading_dimensions_and_strides() -> None:
    one = case(torch.float32, "mask", 12, 23, False, 1.0, 0.0)
    assert one.mask is not None
    shaped: dict[str, Any] = {name: getattr(one, name).view(3, 4) for name in ("labels", "mask", "grad")}
    wide = one._replace(
        **shaped,
        # Every second hidden state of a larger tensor, and a weight that lies the other way around.
        hidden=one.hidden.view(3, 4, 6).repeat_interleave(2, dim=1)[:, ::2],
        weight=one.weight.T.contiguous().T,
    )
    found = wide.forward(True, True, OnCpu())
    torch.testing.assert_close(found[0].double(), one.logprob.view(3, 4), rtol=1e-5, atol=1e-5)
    gradients = wide.backward(found, (True, True, False), OnCpu())
    assert gradients[0].shape == (3, 4, 6) and relative(gradients[0].view(12, 6), one.gradients[0]) < 3e-6
    assert relative(gradients[1], one.gradients[1]) < 3e-6


def test_memory_of_a_chunk_is_bounded() -> None:
    """Neither a chunk of logits nor a slice of the weight's gradient outgrows the budget, but for the smallest step."""
    for rows, vocab, depth in itertools.product((1, 7, 410, 8192, 100_000), (1, 1000, 151_936), (0, 64, 4096)):
        chunk_rows, columns = cuda_chunks.plan(rows, vocab, depth)
        assert 1 <= chunk_rows <= rows and 1 <= columns <= vocab
        assert 4 * max(chunk_rows, depth) * columns <= cuda_chunks.CHUNK_BYTES
        assert columns == vocab or columns % cuda_chunks.COLUMN_STEP == 0


def test_every_element_meets_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_chunks, "CHUNK_ROWS", 4)
    monkeypatch.setattr(cuda_chunks, "CHUNK_BYTES", 4 * 4 * 10)
    monkeypatch.setattr(cuda_chunks, "COLUMN_STEP", 10)
    run = OnCpu()
    case(torch.float32, "all", 11, 23, False, 1.0, 0.0).forward(False, False, run)
    assert sorted(run.chunks) == list(itertools.product((0, 4, 8), (0, 10, 20)))
